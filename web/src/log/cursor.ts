// Cursors and positions of the log, as text: "<log epoch>.<position>" and "<position>". Pure.

/** The position of a cursor, "42" of "1.42". */
export function positionOf(cursor: string): string {
  return cursor.slice(cursor.indexOf(".") + 1);
}

/** Whether everything up to `other` has been seen at `cursor`. */
export function reaches(cursor: string, other: string): boolean {
  const [epoch, position] = numbers(cursor);
  const [otherEpoch, otherPosition] = numbers(other);
  return epoch > otherEpoch || (epoch === otherEpoch && position >= otherPosition);
}

/** Whether position a stands after position b; nothing stands before everything. */
export function isAfter(a: string | undefined, b: string | undefined): boolean {
  return BigInt(a ?? 0) > BigInt(b ?? 0);
}

function numbers(cursor: string): [bigint, bigint] {
  const dot = cursor.indexOf(".");
  return [BigInt(cursor.slice(0, dot)), BigInt(positionOf(cursor))];
}

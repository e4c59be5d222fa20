// Numbers and times as people read them. Pure: now comes in.

/** "7f3a1c9" of a full hash. */
export function shortCommit(commit: string): string {
  return commit.slice(0, 7);
}

/** The first line of a commit message. */
export function subjectLine(message: string): string {
  return message.split("\n", 1)[0] ?? "";
}

/** A duration in milliseconds: "0.4 s", "12 s", "3 min 4 s", "2 h 5 min". */
export function duration(milliseconds: number): string {
  const tenths = Math.floor(Math.max(0, milliseconds) / 100);
  if (tenths < 100) return `${(tenths / 10).toFixed(1)} s`;
  const seconds = tenths / 10;
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** Milliseconds from one time of the server to another. */
export function between(from: string, to: string): number {
  return Date.parse(to) - Date.parse(from);
}

/** How long ago a time was: "just now", "42 s ago", "5 min ago", "3 h ago", "2 d ago". */
export function ago(time: string, now: number): string {
  const seconds = Math.floor((now - Date.parse(time)) / 1000);
  if (seconds < 5) return "just now";
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86_400)} d ago`;
}

/** Time of day by the reader's clock: "14:02:07". */
export function clock(time: string): string {
  return new Date(time).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
}

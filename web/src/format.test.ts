import { expect, test } from "vitest";
import { ago, between, duration, shortCommit, subjectLine } from "./format";

test.each([
  [-5, "0.0 s"], [400, "0.4 s"], [9_999, "9.9 s"], [10_000, "10 s"], [12_900, "12 s"], [59_999, "59 s"], [60_000, "1 min 0 s"], [184_000, "3 min 4 s"], [7_500_000, "2 h 5 min"],
])("%d ms are told as %s", (milliseconds, expected) => {
  expect(duration(milliseconds)).toBe(expected);
});

const noon = Date.parse("2026-11-23T12:00:00Z");

test.each([
  ["2026-11-23T12:00:03.000000Z", "just now"], // the server's clock is ahead
  ["2026-11-23T11:59:57.000000Z", "just now"],
  ["2026-11-23T11:59:18.000000Z", "42 s ago"],
  ["2026-11-23T11:55:00.000000Z", "5 min ago"],
  ["2026-11-23T09:00:00.000000Z", "3 h ago"],
  ["2026-11-21T12:00:00.000000Z", "2 d ago"],
])("%s was %s", (time, expected) => {
  expect(ago(time, noon)).toBe(expected);
});

test("microseconds of the server count", () => {
  expect(between("2026-11-23T10:00:00.100000Z", "2026-11-23T10:00:03.300000Z")).toBe(3200);
});

test("a commit is told by its first seven digits and its message's first line", () => {
  expect(shortCommit("7f3a1c9e5b2d4f60718293a4b5c6d7e8f9012345")).toBe("7f3a1c9");
  expect(subjectLine("Greet in French\n\nAs asked.")).toBe("Greet in French");
});

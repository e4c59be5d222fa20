import { expect, test } from "vitest";
import { isAfter, positionOf, reaches } from "./cursor";

test("a cursor's position is what follows its epoch", () => {
  expect(positionOf("1.42")).toBe("42");
});

test.each([
  ["1.42", "1.42", true],
  ["1.43", "1.42", true],
  ["1.9", "1.10", false],
  ["2.1", "1.42", true],
  ["1.42", "2.1", false],
  ["1.9007199254740993", "1.9007199254740992", true],
])("%s reaches %s: %s", (cursor, other, expected) => {
  expect(reaches(cursor, other)).toBe(expected);
});

test("positions are compared as numbers, and nothing stands before all of them", () => {
  expect(isAfter("10", "9")).toBe(true);
  expect(isAfter("9", "10")).toBe(false);
  expect(isAfter("1", undefined)).toBe(true);
  expect(isAfter(undefined, undefined)).toBe(false);
});

import { createClient, createRequest, type OperationResult } from "@urql/core";
import { expect, test } from "vitest";
import type { HeadQuery } from "../gql/graphql";
import { View } from "./view";

const client = createClient({ url: "http://test.invalid/graphql", preferGetMethod: false, exchanges: [] });
const operation = client.createRequestOperation<HeadQuery>("query", createRequest("{ head }", {}));
const answer = (head: string): OperationResult<HeadQuery> => ({ operation, data: { head }, stale: false, hasNext: false });

test("of a flood of cursors, one at a time is asked for, and the newest is the last", async () => {
  const asked: string[] = [];
  const waiting: ((result: OperationResult<HeadQuery>) => void)[] = [];
  const view = new View<HeadQuery>((atLeast) => {
    asked.push(atLeast);
    return new Promise((resolve) => waiting.push(resolve));
  });
  const heard: (string | undefined)[] = [];
  view.subscribe(() => { heard.push(view.answer().data?.head); });

  for (let position = 1; position <= 100; position++) view.moveTo(`1.${position}`);
  expect(asked).toEqual(["1.1"]);
  waiting[0]?.(answer("1.1"));
  await expect.poll(() => asked).toEqual(["1.1", "1.100"]);
  waiting[1]?.(answer("1.100"));
  await expect.poll(() => heard).toEqual(["1.1", "1.100"]);
  expect(asked).toHaveLength(2);
});

test("nothing is asked for when nobody looks", () => {
  const asked: string[] = [];
  const view = new View<HeadQuery>((atLeast) => {
    asked.push(atLeast);
    return Promise.resolve(answer(atLeast));
  });
  view.moveTo("1.1");
  expect(asked).toEqual([]);
});

import { describe, expect, test } from "vitest";
import { EventsDocument, HeadDocument } from "../log/documents";
import { mustFit } from "./fit";
import { TestServer } from "./server";

describe("a fixture", () => {
  const batch = { cursor: "1.2", events: [{ position: "2" }] };

  test("that a server could answer fits", () => {
    expect(() => { mustFit(EventsDocument, { after: "1.1" }, { events: batch }); }).not.toThrow();
  });

  test("that lacks what the document asks for doesn't", () => {
    expect(() => { mustFit(EventsDocument, {}, { events: { ...batch, cursor: undefined } }); }).toThrow("events.cursor");
  });

  test("that has more than the document asks for doesn't", () => {
    expect(() => { mustFit(EventsDocument, {}, { events: { ...batch, head: "1.2" } }); }).toThrow("more than the document asks for");
  });
});

describe("the test server", () => {
  test("tells what it was asked, and that it has no answer", async () => {
    const server = new TestServer({});
    await server.link.client.query(HeadDocument, {}).toPromise();
    expect(server.asked).toEqual([{ name: "Head", variables: {} }]);
    expect(server.problems).toEqual(["there is no answer for Head"]);
  });

  test("tells of an answer that doesn't fit", async () => {
    const server = new TestServer({ Head: { tail: "1.1" } });
    await server.link.client.query(HeadDocument, {}).toPromise();
    expect(server.problems[0]).toContain("Query.head");
  });
});

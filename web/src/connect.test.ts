// @vitest-environment jsdom
import { createServer, type IncomingHttpHeaders } from "node:http";
import type { AddressInfo } from "node:net";
import { expect, onTestFinished, test } from "vitest";
import { connect } from "./connect";
import { HeadDocument } from "./log/documents";

test("a query is a POST that accepts JSON and no event stream", async () => {
  const asked: { method: string | undefined; headers: IncomingHttpHeaders }[] = [];
  const server = createServer(({ method, headers }, response) => {
    asked.push({ method, headers });
    response.setHeader("Content-Type", "application/graphql-response+json");
    response.end('{"data":{"head":"1.42"}}');
  });
  onTestFinished(() => { server.close(); });
  const port = await new Promise<number>((resolve) => {
    server.listen(0, "127.0.0.1", () => { resolve(portOf(server.address())); });
  });

  const { data } = await connect(`http://127.0.0.1:${port}`).client.query(HeadDocument, {}).toPromise();
  expect(data).toEqual({ head: "1.42" });
  expect(asked.map(({ method, headers }) => [method, headers.accept])).toEqual([["POST", "application/graphql-response+json, application/json"]]);
});

function portOf(address: AddressInfo | string | null): number {
  if (address === null || typeof address === "string") throw new Error("the server has no port");
  return address.port;
}

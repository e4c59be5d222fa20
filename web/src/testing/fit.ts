// Checks fixtures against the server's real schema and the page's real documents, so that neither can drift.
import { readdirSync, readFileSync } from "node:fs";
import { isDeepStrictEqual } from "node:util";
import { buildSchema, executeSync, type DocumentNode } from "graphql";

/** What a server would answer: plain JSON. */
export type Fixture = Record<string, unknown>;

const folder = "../graph/schema";
const files = readdirSync(folder).filter((name) => name.endsWith(".graphqls"));
const schema = buildSchema(files.map((name) => readFileSync(`${folder}/${name}`, "utf8")).join("\n"));

/** Throws unless a server with this schema would answer the document with just this fixture. */
export function mustFit(document: DocumentNode, variables: Record<string, unknown>, fixture: Fixture): void {
  const { data, errors } = executeSync({ schema, document, variableValues: variables, rootValue: fixture });
  if (errors) throw new Error(`the fixture doesn't fit the document: ${errors.map((e) => `${e.path?.join(".") ?? ""}: ${e.message}`).join("; ")}`);
  if (isDeepStrictEqual(plain(data), plain(fixture))) return;
  throw new Error(`the fixture has more than the document asks for:\n${JSON.stringify(fixture)}\ninstead of\n${JSON.stringify(data)}`);
}

/** As it comes out of JSON. */
function plain(value: unknown): unknown {
  return JSON.parse(JSON.stringify(value));
}

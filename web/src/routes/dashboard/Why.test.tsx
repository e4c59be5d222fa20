// @vitest-environment jsdom
import { act, screen, waitFor, within } from "@testing-library/react";
import { afterEach, expect, test } from "vitest";
import * as hello from "../../testing/fixtures";
import type { Fixture } from "../../testing/fit";
import { refused, TestServer, type Answer } from "../../testing/server";
import { show } from "../../testing/show";

let server: TestServer;

function serverWith(why: Answer): TestServer {
  server = new TestServer({ Head: { head: "1.60" }, Projects: hello.projects(hello.project()), LastPush: hello.lastPush(), Why: why });
  return server;
}

afterEach(() => {
  expect(server.problems).toEqual([]);
});

const here = "/?project=hello&why=env_1/svc_1";
const told = () => screen.findByRole("region", { name: "Why" });

test("is asked for by a link beside what serves, and left by another", async () => {
  const { user, router } = show(serverWith(hello.why()));
  await user.click(await screen.findByRole("link", { name: /^Why\?/ }));
  await told();
  expect(router.state.location.search).toEqual({ project: "hello", why: "env_1/svc_1" });
  expect(server.variablesOf("Why").at(-1)).toEqual({ project: "hello", environment: "env_1", service: "svc_1", atLeast: "1.60" });
  await user.click(screen.getByRole("link", { name: "To the last push" }));
  expect(await screen.findByRole("region", { name: "Timeline" })).toBeDefined();
});

test("tells the chain back to the person, and what doesn't run with its diagnosis", async () => {
  show(serverWith(hello.why()), here);
  const why = await told();
  expect(within(why).getByRole("heading", { level: 2 }).textContent).toContain("production runs 7f3a1c9 of hello");
  expect(within(why).getAllByRole("heading", { level: 3 }).map((h) => h.textContent)).toEqual(["Because  as of 1.60", "Not running: ccccccc rolled back "]);
  const push = within(why).getByText("push of 7f3a1c9 to main (github, delivery 1)").closest("li");
  expect(push?.textContent).toContain("Ada");
  expect(push?.querySelector("time")?.title).toContain("at 1.40, psh_1");
  expect(within(why).getByText("rolled back by itself: Deployment failed")).toBeDefined();
  expect(within(why).getByRole("article", { name: "Deployment failed" })).toBeDefined();
});

test("moves on with the log", async () => {
  show(serverWith(hello.why()), here);
  await told();
  act(() => { server.send("1.61", ["61"]); });
  await waitFor(() => { expect(server.variablesOf("Why").at(-1)?.atLeast).toBe("1.61"); });
});

test("says that nothing runs yet", async () => {
  show(serverWith(hello.why({ release: null, since: null, steps: [], beside: [] })), here);
  expect(await screen.findByRole("heading", { name: "production runs nothing of hello yet" })).toBeDefined();
});

test("says so when there is no such environment", async () => {
  show(serverWith({ why: null }), here);
  expect(await screen.findByRole("heading", { name: "There is no such environment" })).toBeDefined();
});

test("says that it loads until the server has answered", async () => {
  const waiting: ((answer: Fixture) => void)[] = [];
  show(serverWith(() => new Promise((resolve) => waiting.push(resolve))), here);
  await waitFor(() => { expect(waiting).not.toHaveLength(0); });
  expect(screen.getByText("Loading…")).toBeDefined();
  act(() => { for (const answer of waiting) answer(hello.why()); });
  expect(await told()).toBeDefined();
});

test("tells an error as a diagnosis", async () => {
  show(serverWith(refused("NOT_FOUND", "there is no environment moon in project hello", "see: pipeops project show hello")), here);
  const problem = await screen.findByRole("article", { name: "PipeOps could not answer" });
  expect(within(problem).getByText("see: pipeops project show hello")).toBeDefined();
});

// @vitest-environment jsdom
import { act, screen, waitFor, within } from "@testing-library/react";
import { afterEach, describe, expect, test, vi } from "vitest";
import * as hello from "../../testing/fixtures";
import type { Fixture } from "../../testing/fit";
import { refused, TestServer, unreachable, type Answer } from "../../testing/server";
import { show } from "../../testing/show";

let server: TestServer;

function serverWith(answers: Record<string, Answer> = {}): TestServer {
  server = new TestServer({ Head: { head: "1.60" }, Projects: hello.projects(hello.project()), LastPush: hello.lastPush(), ...answers });
  return server;
}

afterEach(() => {
  expect(server.problems).toEqual([]);
});

const timeline = () => screen.findByRole("region", { name: "Timeline" });

describe("loading", () => {
  test("says so until the server has answered", async () => {
    const waiting: ((answer: Fixture) => void)[] = [];
    show(serverWith({ Projects: () => new Promise((resolve) => waiting.push(resolve)) }));
    expect(await screen.findByText("Loading…")).toBeDefined();
    await waitFor(() => { expect(waiting).not.toHaveLength(0); });
    act(() => { for (const answer of waiting) answer(hello.projects(hello.project())); });
    expect(await screen.findByRole("link", { name: "hello" })).toBeDefined();
  });
});

describe("empty", () => {
  test("says how to push the first project, command by command", async () => {
    show(serverWith({ Projects: hello.projects() }));
    expect(await screen.findByRole("heading", { name: "Push your first project" })).toBeDefined();
    expect(screen.getByText("pipeops project create hello --branch main")).toBeDefined();
    expect(screen.getByText(/git remote add pipeops http:\/\/localhost:3000\/git\/hello\s+git push pipeops HEAD:main/)).toBeDefined();
  });

  test("copies a command", async () => {
    vi.stubGlobal("isSecureContext", true);
    const { user } = show(serverWith({ Projects: hello.projects() }));
    await user.click(await screen.findByRole("button", { name: "Copy pipeops project create hello --branch main" }));
    expect(await screen.findByText("Copied")).toBeDefined();
    expect(await navigator.clipboard.readText()).toBe("pipeops project create hello --branch main");
    vi.unstubAllGlobals();
  });

  test("says how to push to a project that has the built-in git remote", async () => {
    show(serverWith({ Projects: hello.projects(hello.project({ lastPush: null, status: [] })), LastPush: hello.noPush() }));
    expect(await screen.findByRole("heading", { name: "Nothing was pushed to hello yet" })).toBeDefined();
    expect(screen.getByText(/git remote add pipeops http:\/\/127.0.0.1:8787\/git\/hello\s+git push pipeops HEAD:main/)).toBeDefined();
    expect(screen.getByText("no push yet")).toBeDefined();
  });

  test("says which webhook to add for a project of a git host", async () => {
    show(serverWith({ LastPush: hello.noPush({ repository: "https://github.com/acme/hello.git" }) }));
    expect(await screen.findByText("http://127.0.0.1:8787/webhooks/github/prj_hello")).toBeDefined();
    expect(screen.getByText("git push origin HEAD:main")).toBeDefined();
  });
});

describe("error", () => {
  test("tells an unreachable server as a diagnosis, and goes on by itself", async () => {
    show(serverWith({ Head: unreachable() }));
    const told = await screen.findByRole("article", { name: "PipeOps can't be reached" });
    expect(within(told).getByText("Failed to fetch")).toBeDefined();
    expect(within(told).getByText("No answer came from the address of this page")).toBeDefined();
    expect(within(told).getAllByRole("listitem").length).toBe(2);
    expect(within(told).getByText("pipeops doctor")).toBeDefined();

    server.answers.Head = { head: "1.60" };
    expect(await screen.findByRole("link", { name: "hello" })).toBeDefined();
  });

  test("tells a refused query as a diagnosis with the server's own fix", async () => {
    show(serverWith({ Projects: refused("READ_MODEL_BEHIND", "projects are 12 positions behind", "ask again in a moment") }));
    const told = await screen.findByRole("article", { name: "PipeOps could not answer" });
    expect(within(told).getByText("projects are 12 positions behind")).toBeDefined();
    expect(within(told).getByText("The read models have not caught up with the log yet")).toBeDefined();
    expect(within(told).getByText("ask again in a moment")).toBeDefined();
    expect(within(told).getByText("READ_MODEL_BEHIND")).toBeDefined();
  });

  test("tries again at once when asked to", async () => {
    const { user } = show(serverWith({ LastPush: unreachable() }));
    const again = await screen.findByRole("button", { name: "Try now" });
    const heads = server.times("Head");
    await user.click(again);
    await waitFor(() => { expect(server.times("Head")).toBe(heads + 1); });
  });

  test("keeps what is known while a later query fails", async () => {
    show(serverWith());
    await timeline();
    server.answers.LastPush = unreachable();
    act(() => { server.send("1.61", ["61"]); });
    await waitFor(() => { expect(server.variablesOf("LastPush").at(-1)).toEqual({ project: "prj_hello", atLeast: "1.61" }); });
    expect(await timeline()).toBeDefined();
  });
});

describe("live", () => {
  test("lists the projects with what runs where", async () => {
    show(serverWith());
    const list = await screen.findByRole("navigation", { name: "Projects" });
    const card = within(list).getByRole("article");
    expect(within(card).getByRole("link", { name: "hello" }).getAttribute("aria-current")).toBe("page");
    for (const text of ["main", "live", "production", "succeeded", "7f3a1c9", "hello.hello-production-a1b2c3.svc:80"]) {
      expect(within(card).getByText(text)).toBeDefined();
    }
  });

  test("says when there may be more projects than are listed", async () => {
    show(serverWith({ Projects: hello.projects(...Array.from({ length: 500 }, (_, i) => hello.project({ id: `prj_${i}`, name: `app-${i}` }))) }));
    const list = await screen.findByRole("navigation", { name: "Projects" });
    expect(within(list).getByText(/the first 500 by name/)).toBeDefined();
  });

  test("links to an address that a browser can open", async () => {
    show(serverWith({ Projects: hello.projects(hello.project({ status: [hello.status({ address: "https://hello.example.org" })] })) }));
    const link = await screen.findByRole("link", { name: "hello.example.org" });
    expect(link.getAttribute("href")).toBe("https://hello.example.org");
  });

  test("tells the last push in sentences, with times and durations", async () => {
    show(serverWith());
    const told = await timeline();
    expect(screen.getByRole("heading", { name: "Greet in French" })).toBeDefined();
    expect(within(told).getAllByRole("heading", { level: 3 }).map((h) => h.textContent)).toEqual([
      "Push  ", "Build succeeded 4.2 s", "Deploy hello to production succeeded 3.0 s",
    ]);
    const layer = within(told).getByText("Built: [build 3/5] RUN go build (3.2 s)").closest("li");
    expect(layer?.textContent).toContain("+3.2 s");
    expect(layer?.querySelector("time")?.dateTime).toBe("2026-11-23T10:00:03.300000Z");
    const live = within(told).getByText("Build succeeded (4.2 s)").closest("li");
    expect(live?.textContent).toMatch(/^Success:/);
  });

  test("shows what happens when it happens, and says it aloud", async () => {
    const { received, requested, layer } = hello.entries;
    const running = hello.build({ phase: "RUNNING", finishedAt: null });
    const building = { status: "BUILDING", finishedAt: null };
    show(serverWith({ LastPush: hello.lastPush({ push: building, builds: [running], deployments: [], entries: [received, requested] }) }));
    const told = await timeline();
    expect(screen.queryByText("Built: [build 3/5] RUN go build (3.2 s)")).toBeNull();

    server.answers.LastPush = hello.lastPush({ push: building, builds: [running], deployments: [], entries: [received, requested, layer] });
    act(() => { server.send("1.61", ["61"]); });
    expect(await within(told).findAllByText("Built: [build 3/5] RUN go build (3.2 s)")).toHaveLength(2);
    expect(told.querySelector("[aria-live=polite]")?.textContent).toBe("Built: [build 3/5] RUN go build (3.2 s)");
    expect(server.variablesOf("LastPush").at(-1)).toEqual({ project: "prj_hello", atLeast: "1.61" });
    expect(screen.getByText("event 61")).toBeDefined();
  });

  test("shows how far a rollout is", async () => {
    const rolling = hello.deployment({ phase: "RUNNING", finishedAt: null, progress: { wanted: 3, available: 1 } });
    show(serverWith({ LastPush: hello.lastPush({ deployments: [rolling] }) }));
    expect(await screen.findByText("1 of 3 pods available")).toBeDefined();
    expect(screen.getByRole("progressbar").getAttribute("value")).toBe("1");
  });

  test("shows the diagnosis of a failed build whole, below the event that brought it", async () => {
    const failed = hello.entry("50", "Build failed: RUN go build exited with 1", { type: "BuildFailed", severity: "ERROR" });
    show(serverWith({
      LastPush: hello.lastPush({
        builds: [hello.build({ phase: "FAILED", diagnosis: hello.diagnosis() })], deployments: [],
        entries: [hello.entries.received, hello.entries.requested, failed],
      }),
    }));
    const card = await screen.findByRole("article", { name: "Build failed: RUN go build exited with 1" });
    for (const text of ["[build 3/5] RUN go build -o /app .", "./main.go:12:2: undefined: serve", "The program does not compile", "go build ./...", "DOCKERFILE_STEP"]) {
      expect(within(card).getByText(text)).toBeDefined();
    }
    expect(within(card).getByLabelText("Last lines of output").textContent).toBe("# example.com/hello\n./main.go:12:2: undefined: serve");
    expect(within(card).getAllByRole("listitem").map((li) => li.textContent)).toEqual(["Run go build in the repository and mend what it says", "Push again"]);
    expect(within(card).getByRole("button", { name: "Copy go build ./..." })).toBeDefined();
    const sentence = within(await timeline()).getAllByText("Build failed: RUN go build exited with 1")[0];
    expect(sentence?.closest("li")?.nextElementSibling?.contains(card)).toBe(true);
  });

  test("shows why a deployment and its roll-back failed", async () => {
    const failed = hello.entry("50", "hello to production: Deployment failed: ImagePullBackOff", { subject: "dep_1", type: "DeploymentFailed", severity: "ERROR" });
    const stuck = hello.entry("52", "hello to production: Rollback failed", { subject: "dep_1", type: "RollbackFailed", severity: "ERROR" });
    show(serverWith({
      LastPush: hello.lastPush({
        deployments: [hello.deployment({
          phase: "FAILED", diagnosis: hello.diagnosis({ title: "Deployment failed: ImagePullBackOff" }), rollbackDiagnosis: hello.diagnosis({ title: "Rollback failed" }),
        })],
        entries: [hello.entries.received, failed, stuck],
      }),
    }));
    expect(await screen.findByRole("article", { name: "Deployment failed: ImagePullBackOff" })).toBeDefined();
    expect(screen.getByRole("article", { name: "Rollback failed" })).toBeDefined();
  });

  test("tells why a newer push was ignored", async () => {
    const why = hello.diagnosis({ title: "Push ignored: the project isn't fully configured" });
    show(serverWith({ LastPush: hello.lastPush({ newest: { position: "70", diagnosis: why } }) }));
    expect(await screen.findByRole("article", { name: "Push ignored: the project isn't fully configured" })).toBeDefined();
    expect(await timeline()).toBeDefined();
  });

  test("chooses a project by keyboard, and keeps the choice in the URL", async () => {
    const other = hello.project({ id: "prj_shop", name: "shop", status: [], lastPush: null });
    const { user, router } = show(serverWith({ Projects: hello.projects(hello.project(), other), LastPush: ({ project }) => (project === "prj_shop" ? hello.noPush({ name: "shop" }) : hello.lastPush()) }));
    await timeline();
    await user.tab();
    expect(document.activeElement?.textContent).toBe("Skip to the content");
    const shop = screen.getByRole("link", { name: "shop" });
    for (let i = 0; document.activeElement !== shop && i < 10; i++) await user.tab();
    await user.keyboard("{Enter}");
    expect(await screen.findByRole("heading", { name: "Nothing was pushed to shop yet" })).toBeDefined();
    expect(router.state.location.search).toEqual({ project: "shop" });
  });

  test("shows the project that was pushed to last when the URL names none", async () => {
    const older = hello.project({ id: "prj_a", name: "a", lastPush: { position: "9", status: "LIVE", receivedAt: "2026-11-23T09:00:00.000000Z" } });
    show(serverWith({ Projects: hello.projects(older, hello.project()) }));
    await timeline();
    expect(server.variablesOf("LastPush").at(-1)?.project).toBe("prj_hello");
  });

  test("says when the URL names a project that is not there", async () => {
    show(serverWith({ NamedProject: { project: null } }), "/?project=nope");
    expect(await screen.findByRole("heading", { name: "There is no project nope" })).toBeDefined();
    expect(server.variablesOf("NamedProject").at(-1)).toEqual({ name: "nope", atLeast: "1.60" });
  });

  test("shows a project that the URL names though the list is too short for it", async () => {
    show(serverWith({ NamedProject: { project: { id: "prj_zeta", name: "zeta" } } }), "/?project=zeta");
    await timeline();
    expect(server.variablesOf("LastPush").at(-1)?.project).toBe("prj_zeta");
  });
});

describe("connection", () => {
  const statusText = () => screen.getAllByRole("status").map((s) => s.textContent).join("|");

  test("resumes after the last cursor once the connection was lost, and says what was replayed", async () => {
    show(serverWith());
    await timeline();
    act(() => { server.send("1.62", ["61", "62"]); });
    await waitFor(() => { expect(statusText()).toContain("Live"); });

    server.answers.Head = unreachable();
    act(() => { server.cut(unreachable("Socket closed")); });
    await waitFor(() => { expect(statusText()).toContain("Reconnecting…"); });
    expect(await timeline()).toBeDefined();

    server.answers.Head = { head: "1.65" };
    await waitFor(() => { expect(server.variablesOf("Events").at(-1)).toEqual({ after: "1.62" }); });
    await waitFor(() => { expect(statusText()).toContain("Replaying…"); });
    act(() => { server.send("1.64", ["63", "64"]); });
    act(() => { server.send("1.66", ["65", "66"]); });
    await waitFor(() => { expect(statusText()).toContain("Live, replayed 3 events"); });
    await waitFor(() => { expect(server.variablesOf("LastPush").at(-1)?.atLeast).toBe("1.66"); });
  });

  test("begins at the head again when the log was restored from before its cursor", async () => {
    show(serverWith());
    await timeline();
    server.answers.Head = { head: "2.31" };
    act(() => { server.cut(refused("CURSOR_FORKED", "the log has forked at position 30")); });
    await waitFor(() => { expect(server.variablesOf("Events").at(-1)).toEqual({ after: "2.31" }); });
    await waitFor(() => { expect(server.variablesOf("LastPush").at(-1)?.atLeast).toBe("2.31"); });
  });

  test("asks for the token, and goes on once it was taken", async () => {
    const login = vi.spyOn(globalThis, "fetch").mockResolvedValueOnce(new Response(null, { status: 401 }));
    const { user } = show(serverWith({ Head: refused("UNAUTHENTICATED", "who are you?") }));
    const token = await screen.findByLabelText("Token");
    expect(screen.getByText(/The token is in the file that/).textContent).toBe("The token is in the file that pipeops up printed.");
    await user.type(token, "wrong{Enter}");
    expect((await screen.findByRole("alert")).textContent).toContain("not a token that PipeOps knows");

    login.mockImplementationOnce((_, init) => {
      server.answers.Head = { head: "1.60" };
      expect(init?.body).toEqual(new URLSearchParams({ token: "right" }));
      return Promise.resolve(new Response(null, { status: 204 }));
    });
    await user.clear(token);
    await user.type(token, " right {Enter}");
    expect(await timeline()).toBeDefined();
    expect(login).toHaveBeenCalledTimes(2);
    login.mockRestore();
  });

  test("asks for the token when it is taken away later", async () => {
    show(serverWith());
    await timeline();
    server.answers.Head = server.answers.Projects = server.answers.LastPush = refused("UNAUTHENTICATED", "who are you?");
    act(() => { server.send("1.61", ["61"]); });
    expect(await screen.findByLabelText("Token")).toBeDefined();
  });

  test("signs out", async () => {
    const { user } = show(serverWith());
    await timeline();
    const logout = vi.spyOn(globalThis, "fetch").mockImplementationOnce(() => {
      server.answers.Head = refused("UNAUTHENTICATED", "who are you?");
      return Promise.resolve(new Response(null, { status: 204 }));
    });
    await user.click(screen.getByRole("button", { name: "Sign out" }));
    expect(await screen.findByLabelText("Token")).toBeDefined();
    expect(logout).toHaveBeenCalledWith("/login", { method: "DELETE", credentials: "same-origin" });
    logout.mockRestore();
  });
});

describe("build output", () => {
  const part = (change: object) => ({ buildLog: { attempt: "bld_1.1", text: "", next: 0, done: false, nextAttempt: "", ...change } });

  test("is read on until it is done once it is opened, and stands in the URL", async () => {
    const { user, router } = show(serverWith({
      BuildLog: ({ after }) => (after === 0 ? part({ text: "#1 load\n", next: 8 }) : part({ text: "#2 done\n", next: 16, done: true })),
    }));
    await timeline();
    expect(server.times("BuildLog")).toBe(0);
    await user.click(screen.getByText("Build output"));
    await waitFor(() => { expect(screen.getByLabelText("Build output").textContent).toBe("#1 load\n#2 done\n"); });
    expect(server.variablesOf("BuildLog").at(-1)).toEqual({ build: "bld_1", attempt: "bld_1.1", after: 8 });
    expect(router.state.location.search).toEqual({ log: "bld_1" });
  });

  test("is open when the URL says so", async () => {
    show(serverWith({ BuildLog: part({ done: true }) }), "/?project=hello&log=bld_1");
    expect(await screen.findByText("There is no output.")).toBeDefined();
  });
});

// What the server would answer about a project called hello; each test changes what it is about.
import type { Fixture } from "./fit";

export const commit = "7f3a1c9e5b2d4f60718293a4b5c6d7e8f9012345";

export function status(change: Fixture = {}): Fixture {
  return {
    projectName: "hello", environment: "env_1", service: "svc_1", environmentName: "production", serviceName: "hello", commit,
    address: "hello.hello-production-a1b2c3.svc:80", phase: "SUCCEEDED", quarantined: [], ...change,
  };
}

export function project(change: Fixture = {}): Fixture {
  return {
    id: "prj_hello", name: "hello", branch: "main", status: [status()],
    lastPush: { position: "40", status: "LIVE", receivedAt: "2026-11-23T10:00:00.000000Z" }, ...change,
  };
}

export function projects(...list: Fixture[]): Fixture {
  return { projects: list };
}

export function diagnosis(change: Fixture = {}): Fixture {
  return {
    code: "DOCKERFILE_STEP", title: "Build failed: RUN go build exited with 1", step: "[build 3/5] RUN go build -o /app .",
    error: "./main.go:12:2: undefined: serve", reason: "The program does not compile",
    fixes: ["Run go build in the repository and mend what it says", "Push again"], run: "go build ./...", docs: "",
    log: ["# example.com/hello", "./main.go:12:2: undefined: serve"], ...change,
  };
}

export function build(change: Fixture = {}): Fixture {
  return {
    id: "bld_1", phase: "SUCCEEDED", dockerfile: "Dockerfile", startedAt: "2026-11-23T10:00:01.000000Z",
    finishedAt: "2026-11-23T10:00:05.200000Z", diagnosis: null, ...change,
  };
}

export function deployment(change: Fixture = {}): Fixture {
  return {
    id: "dep_1", serviceName: "hello", environmentName: "production", phase: "SUCCEEDED", progress: { wanted: 2, available: 2 },
    startedAt: "2026-11-23T10:00:06.000000Z", finishedAt: "2026-11-23T10:00:09.000000Z", diagnosis: null, rollbackDiagnosis: null, ...change,
  };
}

export function entry(id: string, text: string, change: Fixture = {}): Fixture {
  return { id, subject: "bld_1", type: "LayerBuilt", severity: "INFO", text, at: "2026-11-23T10:00:02.000000Z", ...change };
}

export const entries = {
  received: entry("40", "Push of 7f3a1c9 to main received", { subject: "psh_1", type: "PushReceived", at: "2026-11-23T10:00:00.000000Z" }),
  requested: entry("41", "Build of registry/hello requested (7f3a1c9)", { type: "BuildRequested", at: "2026-11-23T10:00:00.100000Z" }),
  layer: entry("45", "Built: [build 3/5] RUN go build (3.2 s)", { at: "2026-11-23T10:00:03.300000Z" }),
  built: entry("50", "Build succeeded (4.2 s)", { type: "BuildSucceeded", severity: "SUCCESS", at: "2026-11-23T10:00:05.200000Z" }),
  live: entry("60", "hello to production: live at hello.hello-production-a1b2c3.svc:80 (3.0 s)", {
    subject: "dep_1", type: "DeploymentSucceeded", severity: "SUCCESS", at: "2026-11-23T10:00:09.000000Z",
  }),
};

export function step(event: string, text: string, change: Fixture = {}): Fixture {
  return {
    cursor: "1.40", event, type: "BuildSucceeded", at: "2026-11-23T10:00:05.200000Z", subject: "bld_1", text,
    who: "builder wrk_1", diagnosis: null, ...change,
  };
}

/** Why hello runs what it runs in production: a push is live, and a later one was rolled back. */
export function why(change: Fixture = {}): Fixture {
  return {
    why: {
      environmentName: "production", serviceName: "hello", asOf: "1.60", since: "2026-11-23T10:00:09.000000Z", release: { commit, image: "registry/hello@sha256:1f2e" },
      steps: [
        step("e3", "7f3a1c9 serves, with configuration 3", { cursor: "1.60", type: "ReleaseActivated", who: "deployer wrk_2", subject: "rel_1" }),
        step("e2", "build succeeded: sha256:1f2e (4.2 s)", { cursor: "1.50" }),
        step("e1", "push of 7f3a1c9 to main (github, delivery 1)", { cursor: "1.40", type: "PushReceived", who: "Ada", subject: "psh_1" }),
      ],
      beside: [{
        subject: "psh_2", commit: "c".repeat(40), outcome: "ROLLED_BACK", text: "rolled back by itself: Deployment failed",
        steps: [step("e9", "rollout failed: Deployment failed", { cursor: "1.59", type: "DeploymentFailed", subject: "dep_2", diagnosis: diagnosis({ title: "Deployment failed" }) })],
      }],
      more: 0, ...change,
    },
  };
}

interface PushParts {
  push?: Fixture;
  builds?: Fixture[];
  deployments?: Fixture[];
  entries?: Fixture[];
  /** The newest push, ignored ones included. */
  newest?: Fixture;
}

/** The last push and what became of it. */
export function lastPush({ push = {}, builds = [build()], deployments = [deployment()], entries: told = Object.values(entries), newest = {} }: PushParts = {}): Fixture {
  return {
    project: { name: "hello", repository: "", branch: "main", gitRemote: "http://127.0.0.1:8787/git/hello", webhookUrl: "http://127.0.0.1:8787/webhooks/github/prj_hello" },
    timeline: {
      push: {
        position: "40", status: "LIVE", branch: "main", commit, forced: false, author: "Ada", message: "Greet in French\n\nAs asked.",
        receivedAt: "2026-11-23T10:00:00.000000Z", finishedAt: "2026-11-23T10:00:09.000000Z", builds, deployments, ...push,
      },
      entries: told,
    },
    pushes: [{ position: "40", diagnosis: null, ...newest }],
  };
}

/** A project that nothing was pushed to. */
export function noPush(change: Fixture = {}): Fixture {
  const { project: about } = lastPush();
  return { project: { ...Object(about), ...change }, timeline: null, pushes: [] };
}

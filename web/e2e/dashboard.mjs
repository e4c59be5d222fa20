// Drives the dashboard of a running PipeOps in a real browser, with a real push. Prints a line for each thing that
// holds, and exits with 1 at the first that doesn't, after a screenshot to build/dashboard-failed.png.
//
//   BASE_URL      of PipeOps, "http://127.0.0.1:8787"
//   TOKEN         an API token; never printed
//   PROJECT       default hello: must exist, with the built-in git remote
//   BRANCH        default main
//   PUSH_COMMAND  a shell command that pushes; default: an empty commit through the built-in git remote
//   CHROMIUM      default: chromium of the PATH
import { execFile } from "node:child_process";
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { existsSync } from "node:fs";
import { promisify } from "node:util";
import axe from "axe-core";
import { chromium } from "playwright-core";

const run = promisify(execFile);
const base = need("BASE_URL").replace(/\/$/, "");
const token = need("TOKEN").trim();
const project = process.env.PROJECT ?? "hello";
const branch = process.env.BRANCH ?? "main";
const pictures = new URL("../../build/", import.meta.url).pathname;

/** How long a push may take to its verdict, and anything else to appear, in milliseconds. */
const verdict = 10 * 60_000;
const appears = 20_000;

/** @param {string} name */
function need(name) {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set: see the top of e2e/dashboard.mjs`);
  return value;
}

/** @param {string} what @param {unknown} holds */
function check(what, holds) {
  if (!holds) throw new Error(`does not hold: ${what}`);
  console.log(`ok  ${what}`);
}

function browserPath() {
  const name = process.env.CHROMIUM ?? "chromium";
  if (name.includes("/")) return name;
  const found = (process.env.PATH ?? "").split(delimiter).map((dir) => join(dir, name)).find(existsSync);
  if (!found) throw new Error(`there is no ${name} on the PATH: apt-get install chromium, or set CHROMIUM`);
  return found;
}

/** Pushes something new. The token goes by environment, never by argument. */
async function push() {
  if (process.env.PUSH_COMMAND) {
    await run("sh", ["-c", process.env.PUSH_COMMAND]);
    return;
  }
  const dir = await mkdtemp(join(tmpdir(), "pipeops-e2e-"));
  const env = {
    ...process.env,
    GIT_TERMINAL_PROMPT: "0",
    GIT_CONFIG_COUNT: "1",
    GIT_CONFIG_KEY_0: "http.extraHeader",
    GIT_CONFIG_VALUE_0: `Authorization: Basic ${Buffer.from(`e2e:${token}`).toString("base64")}`,
    GIT_AUTHOR_NAME: "End to end", GIT_AUTHOR_EMAIL: "e2e@example.org",
    GIT_COMMITTER_NAME: "End to end", GIT_COMMITTER_EMAIL: "e2e@example.org",
  };
  try {
    await run("git", ["clone", "--quiet", "--branch", branch, `${base}/git/${project}`, dir], { env });
    await run("git", ["-C", dir, "commit", "--quiet", "--allow-empty", "-m", "See a push live"], { env });
    await run("git", ["-C", dir, "push", "--quiet", "origin", `HEAD:${branch}`], { env });
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
}

const browser = await chromium.launch({
  executablePath: browserPath(),
  args: [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
  ],
});
const page = await browser.newPage({ viewport: { width: 1280, height: 900 }, reducedMotion: "reduce" });
page.setDefaultTimeout(appears);

/** @type {string[]} */
const complaints = [];
page.on("pageerror", (error) => complaints.push(error.message));
page.on("console", (message) => {
  // Asking without a session is how the page learns that it needs one.
  if (message.type() === "error" && !message.text().includes("401")) complaints.push(message.text());
});

/** @param {string} where */
async function mustBeAccessible(where) {
  await page.evaluate(axe.source);
  const { violations } = await page.evaluate("axe.run()").then((/** @type {any} */ result) => /** @type {axe.AxeResults} */ (result));
  const serious = violations.filter((v) => v.impact === "serious" || v.impact === "critical");
  check(`${where}: axe finds nothing serious${serious.map((v) => `; ${v.id}: ${v.nodes.map((n) => n.html).join(" ")}`).join("")}`, serious.length === 0);
}

/** @param {string} name */
async function picture(name) {
  await mkdir(pictures, { recursive: true });
  await page.screenshot({ path: join(pictures, `dashboard-${name}.png`), fullPage: true });
}

/** Presses Tab until what has the focus matches. @param {import("playwright-core").Locator} target */
async function tabTo(target) {
  for (let i = 0; i < 60; i++) {
    await page.keyboard.press("Tab");
    if (await target.evaluate((element) => element === document.activeElement)) return;
  }
  throw new Error(`Tab never reaches ${target}`);
}

const timeline = page.getByRole("region", { name: "Timeline" });
const commit = page.locator("main header code").first();
const entries = timeline.locator("ol > li:has(time)");
const link = page.getByRole("navigation", { name: "Projects" }).getByRole("link", { name: project, exact: true });

async function signIn() {
  await page.goto(`${base}/`);
  const field = page.getByLabel("Token");
  await field.waitFor();
  await mustBeAccessible("sign in");
  await page.keyboard.type("not-a-token");
  await page.keyboard.press("Enter");
  await page.getByText("not a token that PipeOps knows").waitFor();
  check("a wrong token is refused, in words", true);
  await field.fill(token);
  await page.keyboard.press("Enter");
  await link.waitFor();
  check(`after signing in, project ${project} is listed`, true);
  await page.getByText("Live", { exact: true }).waitFor();
  check("the page is connected", true);
}

async function seePushLive() {
  await link.click();
  await page.waitForURL(`**/?project=${project}`);
  await page.getByRole("heading", { level: 2 }).nth(1).waitFor();
  const before = (await commit.count()) > 0 ? await commit.getAttribute("title") : "";
  await page.evaluate("window.notReloaded = true");
  await push();

  await page.waitForFunction((known) => (document.querySelector("main header code")?.getAttribute("title") ?? known) !== known, before ?? "");
  check(`the new push ${await commit.getAttribute("title")} appears, ${before || "nothing"} was there before`, true);
  const states = new Set();
  let most = 0;
  const badge = page.locator("main header").getByText(/^(received|building|built|deploying|rolling back|live|failed|rolled back|superseded)$/);
  const final = /^(live|failed|rolled back|superseded)$/; // built comes just before deploying
  for (const end = Date.now() + verdict; Date.now() < end; ) {
    const state = (await badge.textContent()) ?? "";
    states.add(state);
    most = Math.max(most, await entries.count());
    if (final.test(state)) break;
    await page.waitForFunction(([count, was]) => {
      const told = document.querySelectorAll("[aria-label=Timeline] ol > li time").length;
      return told !== count || !document.querySelector("main header")?.textContent?.includes(String(was));
    }, /** @type {const} */ ([most, state]), { timeout: verdict });
  }
  check(`its way is seen step by step: ${[...states].join(", ")}, ${most} entries`, states.size > 1 && most > 3);
  check("it has come to a verdict", final.test((await badge.textContent()) ?? ""));
  check("the page was not reloaded", await page.evaluate("window.notReloaded === true"));
}

async function sameAfterReload() {
  const live = await entries.allTextContents();
  await page.reload();
  await timeline.waitFor();
  const loaded = await entries.allTextContents();
  check(`what was seen live is what is there: ${live.length} entries, none missed, none doubled`, JSON.stringify(live) === JSON.stringify(loaded));
}

async function walkByKeyboard() {
  await page.goto(`${base}/`);
  await timeline.waitFor();
  await page.keyboard.press("Tab");
  check("the first Tab reaches the skip link", await page.getByText("Skip to the content").evaluate((e) => e === document.activeElement));
  await tabTo(link);
  await page.keyboard.press("Enter");
  await page.waitForURL(`**/?project=${project}`);
  const output = page.getByText("Build output").first();
  await tabTo(output);
  await page.keyboard.press("Enter");
  await page.locator("pre[aria-label='Build output'][aria-busy=false]").waitFor();
  check("a project is chosen and its build output opened by keyboard alone", page.url().includes("log="));
}

async function look() {
  await mustBeAccessible("live, light");
  await picture("light");
  await page.emulateMedia({ colorScheme: "dark" });
  await mustBeAccessible("live, dark");
  await picture("dark");
  await page.setViewportSize({ width: 390, height: 844 });
  await mustBeAccessible("live, narrow");
  check("nothing is wider than a narrow page", await page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"));
  await picture("narrow");
}

try {
  await signIn();
  await seePushLive();
  await sameAfterReload();
  await walkByKeyboard();
  await look();
  check(`the browser has nothing to complain about${complaints.map((c) => `: ${c}`).join("")}`, complaints.length === 0);
} catch (error) {
  await picture("failed");
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
} finally {
  await browser.close();
}

import { createMemoryHistory, RouterProvider } from "@tanstack/react-router";
import { cleanup, configure, render } from "@testing-library/react";
import userEvent from "@testing-library/user-event";
import { StrictMode } from "react";
import { afterEach } from "vitest";
import { LogProvider } from "../log/LogProvider";
import { makeRouter } from "../router";
import type { TestServer } from "./server";

// jsdom has no layout to scroll in; the router scrolls to the top of a new page.
window.scrollTo = () => undefined;

afterEach(cleanup);

// A busy machine is slow, not wrong.
configure({ asyncUtilTimeout: 15_000 });

const atOnce = [0];

/** Opens the page in the real router, client and log, before a server of the test. */
export function show(server: TestServer, url = "/") {
  const user = userEvent.setup();
  const router = makeRouter(createMemoryHistory({ initialEntries: [url] }));
  render(
    <StrictMode>
      <LogProvider link={server.link} delays={atOnce}>
        <RouterProvider router={router} />
      </LogProvider>
    </StrictMode>,
  );
  return { user, router };
}

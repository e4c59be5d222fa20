import { createRootRoute, createRoute, createRouter, Outlet, type RouterHistory } from "@tanstack/react-router";
import { Dashboard } from "./routes/dashboard/Dashboard";

/** What the page shows, as it stands in the URL: so that it can be reloaded, shared and gone back from. */
export interface DashboardSearch {
  /** Name of the project whose last push is shown; left out: the one that was pushed to last. */
  project?: string;
  /** Id of the build whose output is open. */
  log?: string;
  /** "<environment id>/<service id>" whose release is explained, instead of the last push. */
  why?: string;
}

const text = (value: unknown) => (typeof value === "string" && value !== "" ? value : undefined);

const rootRoute = createRootRoute({ component: Outlet });

const dashboardRoute = createRoute({
  getParentRoute: () => rootRoute,
  path: "/",
  validateSearch: (search: Record<string, unknown>): DashboardSearch => ({ project: text(search.project), log: text(search.log), why: text(search.why) }),
  component: function DashboardRoute() {
    return <Dashboard {...dashboardRoute.useSearch()} />;
  },
});

export function makeRouter(history?: RouterHistory) {
  return createRouter({
    routeTree: rootRoute.addChildren([dashboardRoute]),
    history,
    defaultNotFoundComponent: () => <main className="alone"><h1>There is no such page</h1><p><a href="/">To the dashboard</a></p></main>,
  });
}

declare module "@tanstack/react-router" {
  interface Register {
    router: ReturnType<typeof makeRouter>;
  }
}

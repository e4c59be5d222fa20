import { useCallback } from "react";
import { graphql } from "../../gql";
import type { ProjectsQuery } from "../../gql/graphql";
import { isAfter } from "../../log/cursor";
import { useAt } from "../../log/useAt";
import { useLog } from "../../log/useLog";
import type { DashboardSearch } from "../../router";
import { ConnectionStatus } from "./ConnectionStatus";
import styles from "./Dashboard.module.css";
import { Failure } from "./Failure";
import { FirstProject } from "./FirstProject";
import { LastPush } from "./LastPush";
import { Loading } from "./Loading";
import { ProjectList } from "./ProjectList";
import { signOut } from "./session";
import { SignIn } from "./SignIn";
import { Why } from "./Why";

const ProjectsDocument = graphql(`
  query Projects($atLeast: Cursor, $first: Int!) {
    projects(first: $first, atLeast: $atLeast) {
      id
      name
      lastPush {
        position
      }
      ...ProjectItem
    }
  }
`);

const NamedProjectDocument = graphql(`
  query NamedProject($name: String!, $atLeast: Cursor) {
    project(name: $name, atLeast: $atLeast) {
      id
      name
    }
  }
`);

const longestList = 500; // that the API gives

const atCursor = (atLeast: string) => ({ atLeast, first: longestList });

/** The projects, and the last push of one of them, live. */
export function Dashboard(search: DashboardSearch) {
  const log = useLog();
  return (
    <>
      <a className="skip" href="#content">Skip to the content</a>
      <header className={styles.bar}>
        <h1><img src="/favicon.svg" alt="" width="24" height="24" />PipeOps</h1>
        <div className={styles.right}>
          <ConnectionStatus />
          {log.cursor !== undefined && log.state !== "signed-out" && <button type="button" onClick={() => { void signOut().then(log.restart); }}>Sign out</button>}
        </div>
      </header>
      {log.state === "signed-out" ? <SignIn /> : <Projects {...search} />}
    </>
  );
}

function Projects({ project, log: openLog, why }: DashboardSearch) {
  const log = useLog();
  const { data, error } = useAt(ProjectsDocument, atCursor);
  const failure = error ?? (log.cursor === undefined ? log.error : undefined);

  if (!data) return <main id="content" className="alone">{failure ? <Failure error={failure} /> : <Loading />}</main>;
  if (data.projects.length === 0) return <main id="content" className="alone"><FirstProject /></main>;

  const selected = project === undefined ? lastPushedTo(data) : data.projects.find((p) => p.name === project);
  return (
    <div className={styles.page}>
      <ProjectList projects={data.projects} selected={selected?.id} cut={data.projects.length === longestList} />
      <main id="content" className={styles.content}>
        {selected
          ? <Selected project={selected} openLog={openLog} why={why} />
          : <Unlisted key={project} name={project ?? ""} openLog={openLog} why={why} />}
      </main>
    </div>
  );
}

function lastPushedTo({ projects }: ProjectsQuery) {
  return projects.reduce<ProjectsQuery["projects"][number] | undefined>(
    (last, p) => (last === undefined || isAfter(p.lastPush?.position, last.lastPush?.position) ? p : last),
    undefined,
  );
}

interface Shown {
  openLog: string | undefined;
  why: string | undefined;
}

function Selected({ project, openLog, why }: Shown & { project: { id: string; name: string } }) {
  return why
    ? <Why key={why} project={project.name} place={why} />
    : <LastPush key={project.id} project={project.id} openLog={openLog} />;
}

/** A project that isn't in the list, which may be cut. */
function Unlisted({ name, ...shown }: Shown & { name: string }) {
  const variables = useCallback((atLeast: string) => ({ name, atLeast }), [name]);
  const { data, error } = useAt(NamedProjectDocument, variables);
  if (!data) return error ? <Failure error={error} /> : <Loading />;
  return data.project ? <Selected project={data.project} {...shown} /> : <NoSuchProject name={name} />;
}

function NoSuchProject({ name }: { name: string }) {
  return (
    <>
      <h2>There is no project <code>{name}</code></h2>
      <p>Choose one of the list, or create it: <code>pipeops project create {name}</code></p>
    </>
  );
}

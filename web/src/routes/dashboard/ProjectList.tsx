import { graphql, unmask, type FragmentType } from "../../gql";
import { Link } from "@tanstack/react-router";
import { Ago } from "../../components/Ago";
import { Badge } from "../../components/Badge";
import { toneOfPush, words } from "../../components/tone";
import styles from "./ProjectList.module.css";
import { StatusRow } from "./StatusRow";

const ProjectItemFields = graphql(`
  fragment ProjectItem on Project {
    name
    branch
    status {
      environment
      service
      ...StatusRow
    }
    lastPush {
      status
      receivedAt
    }
  }
`);

interface Props {
  projects: ({ id: string } & FragmentType<typeof ProjectItemFields>)[];
  selected: string | undefined;
  /** There may be more than these. */
  cut: boolean;
}

/** The projects with what runs where; a project is chosen by its link. */
export function ProjectList({ projects, selected, cut }: Props) {
  return (
    <nav className={styles.list} aria-label="Projects">
      <h2>Projects</h2>
      <ul>
        {projects.map((project) => (
          <li key={project.id}><ProjectItem project={project} current={project.id === selected} /></li>
        ))}
      </ul>
      {cut && <p>These are the first {projects.length} by name. All of them: <code>pipeops project list</code></p>}
    </nav>
  );
}

function ProjectItem({ project, current }: { project: FragmentType<typeof ProjectItemFields>; current: boolean }) {
  const { name, branch, status, lastPush } = unmask(ProjectItemFields, project);
  return (
    <article className={`${styles.item} ${current ? styles.current : ""}`}>
      <h3>
        <Link to="/" search={{ project: name }} aria-current={current ? "page" : undefined}>{name}</Link>
        {lastPush && <Badge tone={toneOfPush[lastPush.status]}>{words(lastPush.status)}</Badge>}
      </h3>
      <p className={styles.about}>
        <span>branch <code>{branch}</code></span>
        <span>{lastPush ? <>pushed <Ago time={lastPush.receivedAt} /></> : "no push yet"}</span>
      </p>
      {status.length > 0 && (
        <ul className={styles.status}>
          {status.map((s) => <StatusRow key={`${s.environment}/${s.service}`} status={s} />)}
        </ul>
      )}
    </article>
  );
}

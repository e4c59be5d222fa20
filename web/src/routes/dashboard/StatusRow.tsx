import { Link } from "@tanstack/react-router";
import { Icon } from "../../components/Icon";
import { toneOfPhase, words } from "../../components/tone";
import { shortCommit } from "../../format";
import { graphql, unmask, type FragmentType } from "../../gql";
import styles from "./StatusRow.module.css";

const StatusFields = graphql(`
  fragment StatusRow on Status {
    projectName
    environment
    service
    environmentName
    serviceName
    commit
    address
    phase
    quarantined {
      release
    }
  }
`);

/** What serves in one environment, and how the latest deployment to it stands. */
export function StatusRow({ status }: { status: FragmentType<typeof StatusFields> }) {
  const { projectName, environment, service, environmentName, serviceName, commit, address, phase, quarantined } = unmask(StatusFields, status);
  return (
    <li className={styles.row}>
      <Icon tone={phase ? toneOfPhase[phase] : "info"} label="" />
      <span className={styles.where}>
        {environmentName} <span>{serviceName}</span>
      </span>
      <span className={styles.phase}>{phase ? words(phase) : "nothing deployed"}</span>
      {commit && (
        <span className={styles.serves}>
          serves <code title={commit}>{shortCommit(commit)}</code>
          {address && <> at <Address address={address} /></>}
        </span>
      )}
      {quarantined.length > 0 && (
        <span className={styles.barred}>{quarantined.length === 1 ? "1 release is barred" : `${quarantined.length} releases are barred`}</span>
      )}
      {phase && (
        <span className={styles.why}>
          <Link to="/" search={{ project: projectName, why: `${environment}/${service}` }}>
            Why?<span className="hidden"> What {serviceName} runs in {environmentName}</span>
          </Link>
        </span>
      )}
    </li>
  );
}

/** A link where a browser can follow it; an address within the cluster is text to copy. */
function Address({ address }: { address: string }) {
  return /^https?:\/\//.test(address)
    ? <a href={address}>{address.replace(/^https?:\/\//, "")}</a>
    : <code title="Within the cluster">{address}</code>;
}

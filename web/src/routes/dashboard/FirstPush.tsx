import { Command } from "../../components/Command";
import { graphql, unmask, type FragmentType } from "../../gql";

const FirstPushFields = graphql(`
  fragment FirstPush on Project {
    name
    repository
    branch
    gitRemote
    webhookUrl
  }
`);

/** Shown while nothing was pushed to a project: how to push the first time. */
export function FirstPush({ project }: { project: FragmentType<typeof FirstPushFields> }) {
  const { name, repository, branch, gitRemote, webhookUrl } = unmask(FirstPushFields, project);
  return (
    <section>
      <h2>Nothing was pushed to {name} yet</h2>
      {repository ? (
        <ol className="steps">
          <li>
            <p>Add this webhook to <code>{repository}</code>: pushes only, content type <code>application/json</code>, with the project's webhook secret.</p>
            <Command>{webhookUrl}</Command>
          </li>
          <li>
            <p>Push to its branch <code>{branch}</code>.</p>
            <Command>{`git push origin HEAD:${branch}`}</Command>
          </li>
        </ol>
      ) : (
        <>
          <p>In a git repository that has a Dockerfile. When git asks for a password, give it the token that you signed in with.</p>
          <Command>{`git remote add pipeops ${gitRemote}\ngit push pipeops HEAD:${branch}`}</Command>
        </>
      )}
    </section>
  );
}

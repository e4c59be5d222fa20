import { Command } from "../../components/Command";

/** Shown while there is no project: how to push the first one. */
export function FirstProject() {
  return (
    <section>
      <h2>Push your first project</h2>
      <p>There is no project yet. In a git repository that has a Dockerfile:</p>
      <ol className="steps">
        <li>
          <p>Create the project. It gets one service and the environment <em>production</em>.</p>
          <Command>pipeops project create hello --branch main</Command>
        </li>
        <li>
          <p>Push to it. When git asks for a password, give it the token that you signed in with.</p>
          <Command>{`git remote add pipeops ${window.location.origin}/git/hello\ngit push pipeops HEAD:main`}</Command>
        </li>
      </ol>
      <p>This page shows what becomes of it while it happens.</p>
    </section>
  );
}

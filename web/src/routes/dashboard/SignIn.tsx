import { useState, type SyntheticEvent } from "react";
import { useLog } from "../../log/useLog";
import { signIn } from "./session";
import styles from "./SignIn.module.css";

/** Asks for the token, and changes it for a session's cookie. */
export function SignIn() {
  const { restart } = useLog();
  const [problem, setProblem] = useState("");
  const [busy, setBusy] = useState(false);

  const submit = async (event: SyntheticEvent<HTMLFormElement>) => {
    event.preventDefault();
    const token = new FormData(event.currentTarget).get("token");
    setBusy(true);
    const why = await signIn(typeof token === "string" ? token.trim() : "");
    setBusy(false);
    setProblem(why);
    if (!why) restart();
  };

  return (
    <main id="content" className="alone">
      <form className={styles.form} onSubmit={(event) => { void submit(event); }}>
        <h2>Sign in</h2>
        <label htmlFor="token">Token</label>
        <input
          id="token" name="token" type="password" required autoFocus autoComplete="current-password" spellCheck={false}
          aria-describedby="token-hint token-problem" aria-invalid={problem !== ""}
        />
        <p id="token-hint">The token is in the file that <code>pipeops up</code> printed.</p>
        <p id="token-problem" role="alert" className={styles.problem}>{problem}</p>
        <button type="submit" className="primary" disabled={busy}>Sign in</button>
      </form>
    </main>
  );
}

// The browser's session: a token is changed for a cookie, which scripts can't read.

/** Signs in; gives what to tell the person, nothing when the server has set the cookie. */
export async function signIn(token: string): Promise<string> {
  try {
    const { status } = await fetch("/login", { method: "POST", body: new URLSearchParams({ token }), credentials: "same-origin" });
    if (status === 204) return "";
    if (status === 401) return "This is not a token that PipeOps knows. Copy the whole line of the file, and nothing else.";
    return `PipeOps answered with HTTP ${status}. Try again, or see: pipeops doctor`;
  } catch {
    return "PipeOps can't be reached. Is it running? See: pipeops doctor";
  }
}

/** Has the server forget the cookie. */
export async function signOut(): Promise<void> {
  await fetch("/login", { method: "DELETE", credentials: "same-origin" });
}

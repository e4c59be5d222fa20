import { useCallback, useEffect, useMemo, useState, type ReactNode } from "react";
import { Provider } from "urql";
import { follow, unseen, type Link } from "./follow";
import { LogContext } from "./useLog";

interface Props {
  link: Link;
  /** See FollowOptions. */
  delays?: readonly number[];
  children: ReactNode;
}

/** Follows the log for everything below it: one subscription for the page. */
export function LogProvider({ link, delays, children }: Props) {
  const [seen, setSeen] = useState(unseen);
  const [run, setRun] = useState(0);

  useEffect(() => {
    const stop = new AbortController();
    void follow({ link, report: setSeen, signal: stop.signal, delays });
    return () => { stop.abort(); };
  }, [link, delays, run]);

  const restart = useCallback(() => {
    setSeen(unseen);
    setRun((n) => n + 1);
  }, []);
  const log = useMemo(() => ({ ...seen, restart }), [seen, restart]);
  return (
    <Provider value={link.client}>
      <LogContext value={log}>{children}</LogContext>
    </Provider>
  );
}

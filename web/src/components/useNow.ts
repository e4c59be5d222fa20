import { useEffect, useState } from "react";

/** The reader's clock in milliseconds, once a second while it matters. */
export function useNow(ticking = true): number {
  const [now, setNow] = useState(() => Date.now());
  useEffect(() => {
    if (!ticking) return;
    const timer = setInterval(() => { setNow(Date.now()); }, 1000);
    return () => { clearInterval(timer); };
  }, [ticking]);
  return now;
}

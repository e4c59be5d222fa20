import { createContext, useContext } from "react";
import { unseen, type Seen } from "./follow";

/** Where the page stands in the log, with the way to begin anew (after signing in). */
export interface Log extends Seen {
  restart: () => void;
}

export const LogContext = createContext<Log>({ ...unseen, restart: () => undefined });

export const useLog = () => useContext(LogContext);

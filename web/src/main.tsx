import { RouterProvider } from "@tanstack/react-router";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { connect } from "./connect";
import { LogProvider } from "./log/LogProvider";
import { makeRouter } from "./router";
import "./theme.css";

const root = document.getElementById("root");
if (!root) throw new Error("index.html has no element #root");

const link = connect(window.location.origin);
const router = makeRouter();

createRoot(root).render(
  <StrictMode>
    <LogProvider link={link}>
      <RouterProvider router={router} />
    </LogProvider>
  </StrictMode>,
);

import type { CodegenConfig } from "@graphql-codegen/cli";

// Typed documents from the schema's own files: no server has to run.
const config: CodegenConfig = {
  schema: "../graph/schema/*.graphqls",
  documents: ["src/**/*.{ts,tsx}", "!src/gql/**"],
  generates: {
    "src/gql/": {
      preset: "client",
      presetConfig: { fragmentMasking: { unmaskFunctionName: "unmask" } },
      config: {
        strictScalars: true,
        scalars: { Cursor: "string", Moment: "string", Position: "string", Time: "string", JSON: "unknown", Int64: "number" },
        enumsAsTypes: true,
        useTypeImports: true,
        onlyOperationTypes: true,
      },
    },
  },
};

export default config;

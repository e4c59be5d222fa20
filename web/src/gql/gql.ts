/* eslint-disable */
import * as types from './graphql';
import type { TypedDocumentNode as DocumentNode } from '@graphql-typed-document-node/core';

/**
 * Map of all GraphQL operations in the project.
 *
 * This map has several performance disadvantages:
 * 1. It is not tree-shakeable, so it will include all operations in the project.
 * 2. It is not minifiable, so the string of a GraphQL query will be multiple times inside the bundle.
 * 3. It does not support dead code elimination, so it will add unused operations.
 *
 * Therefore it is highly recommended to use the babel or swc plugin for production.
 * Learn more about it here: https://the-guild.dev/graphql/codegen/plugins/presets/preset-client#reducing-bundle-size
 */
type Documents = {
    "\n  fragment DiagnosisFields on Diagnosis {\n    code\n    title\n    step\n    error\n    reason\n    fixes\n    run\n    docs\n    log\n  }\n": typeof types.DiagnosisFieldsFragmentDoc,
    "\n  query Head {\n    head\n  }\n": typeof types.HeadDocument,
    "\n  subscription Events($after: Cursor) {\n    events(after: $after) {\n      cursor\n      events {\n        position\n      }\n    }\n  }\n": typeof types.EventsDocument,
    "\n  fragment BuildStage on Build {\n    id\n    phase\n    dockerfile\n    startedAt\n    finishedAt\n    diagnosis {\n      ...DiagnosisFields\n    }\n  }\n": typeof types.BuildStageFragmentDoc,
    "\n  query Projects($atLeast: Cursor, $first: Int!) {\n    projects(first: $first, atLeast: $atLeast) {\n      id\n      name\n      lastPush {\n        position\n      }\n      ...ProjectItem\n    }\n  }\n": typeof types.ProjectsDocument,
    "\n  query NamedProject($name: String!, $atLeast: Cursor) {\n    project(name: $name, atLeast: $atLeast) {\n      id\n      name\n    }\n  }\n": typeof types.NamedProjectDocument,
    "\n  fragment DeploymentStage on Deployment {\n    serviceName\n    environmentName\n    phase\n    progress {\n      wanted\n      available\n    }\n    startedAt\n    finishedAt\n    diagnosis {\n      ...DiagnosisFields\n    }\n    rollbackDiagnosis {\n      ...DiagnosisFields\n    }\n  }\n": typeof types.DeploymentStageFragmentDoc,
    "\n  fragment Entry on TimelineEntry {\n    id\n    type\n    severity\n    text\n    at\n  }\n": typeof types.EntryFragmentDoc,
    "\n  fragment FirstPush on Project {\n    name\n    repository\n    branch\n    gitRemote\n    webhookUrl\n  }\n": typeof types.FirstPushFragmentDoc,
    "\n  query LastPush($project: ID!, $atLeast: Cursor) {\n    project(id: $project, atLeast: $atLeast) {\n      ...FirstPush\n    }\n    timeline(project: $project, atLeast: $atLeast) {\n      push {\n        position\n        ...PushHeader\n      }\n      ...Timeline\n    }\n    pushes(project: $project, ignored: true, first: 1, atLeast: $atLeast) {\n      position\n      diagnosis {\n        ...DiagnosisFields\n      }\n    }\n  }\n": typeof types.LastPushDocument,
    "\n  fragment ProjectItem on Project {\n    name\n    branch\n    status {\n      environment\n      service\n      ...StatusRow\n    }\n    lastPush {\n      status\n      receivedAt\n    }\n  }\n": typeof types.ProjectItemFragmentDoc,
    "\n  fragment PushHeader on Push {\n    status\n    branch\n    commit\n    forced\n    author\n    message\n    receivedAt\n    finishedAt\n  }\n": typeof types.PushHeaderFragmentDoc,
    "\n  fragment StatusRow on Status {\n    projectName\n    environment\n    service\n    environmentName\n    serviceName\n    commit\n    address\n    phase\n    quarantined {\n      release\n    }\n  }\n": typeof types.StatusRowFragmentDoc,
    "\n  fragment Timeline on Timeline {\n    push {\n      builds {\n        id\n        ...BuildStage\n      }\n      deployments {\n        id\n        ...DeploymentStage\n      }\n    }\n    entries {\n      id\n      subject\n      text\n      ...Entry\n    }\n  }\n": typeof types.TimelineFragmentDoc,
    "\n  fragment WhyStep on WhyStep {\n    cursor\n    event\n    type\n    at\n    subject\n    text\n    who\n    diagnosis {\n      ...DiagnosisFields\n    }\n  }\n": typeof types.WhyStepFragmentDoc,
    "\n  query Why($project: ID!, $environment: ID!, $service: ID!, $atLeast: Cursor) {\n    why(project: $project, environment: $environment, service: $service, atLeast: $atLeast) {\n      environmentName\n      serviceName\n      asOf\n      since\n      release {\n        commit\n        image\n      }\n      steps {\n        ...WhyStep\n      }\n      beside {\n        subject\n        commit\n        outcome\n        text\n        steps {\n          ...WhyStep\n        }\n      }\n      more\n    }\n  }\n": typeof types.WhyDocument,
    "\n  query BuildLog($build: ID!, $attempt: ID, $after: Int64!) {\n    buildLog(build: $build, attempt: $attempt, after: $after) {\n      attempt\n      text\n      next\n      done\n      nextAttempt\n    }\n  }\n": typeof types.BuildLogDocument,
};
const documents: Documents = {
    "\n  fragment DiagnosisFields on Diagnosis {\n    code\n    title\n    step\n    error\n    reason\n    fixes\n    run\n    docs\n    log\n  }\n": types.DiagnosisFieldsFragmentDoc,
    "\n  query Head {\n    head\n  }\n": types.HeadDocument,
    "\n  subscription Events($after: Cursor) {\n    events(after: $after) {\n      cursor\n      events {\n        position\n      }\n    }\n  }\n": types.EventsDocument,
    "\n  fragment BuildStage on Build {\n    id\n    phase\n    dockerfile\n    startedAt\n    finishedAt\n    diagnosis {\n      ...DiagnosisFields\n    }\n  }\n": types.BuildStageFragmentDoc,
    "\n  query Projects($atLeast: Cursor, $first: Int!) {\n    projects(first: $first, atLeast: $atLeast) {\n      id\n      name\n      lastPush {\n        position\n      }\n      ...ProjectItem\n    }\n  }\n": types.ProjectsDocument,
    "\n  query NamedProject($name: String!, $atLeast: Cursor) {\n    project(name: $name, atLeast: $atLeast) {\n      id\n      name\n    }\n  }\n": types.NamedProjectDocument,
    "\n  fragment DeploymentStage on Deployment {\n    serviceName\n    environmentName\n    phase\n    progress {\n      wanted\n      available\n    }\n    startedAt\n    finishedAt\n    diagnosis {\n      ...DiagnosisFields\n    }\n    rollbackDiagnosis {\n      ...DiagnosisFields\n    }\n  }\n": types.DeploymentStageFragmentDoc,
    "\n  fragment Entry on TimelineEntry {\n    id\n    type\n    severity\n    text\n    at\n  }\n": types.EntryFragmentDoc,
    "\n  fragment FirstPush on Project {\n    name\n    repository\n    branch\n    gitRemote\n    webhookUrl\n  }\n": types.FirstPushFragmentDoc,
    "\n  query LastPush($project: ID!, $atLeast: Cursor) {\n    project(id: $project, atLeast: $atLeast) {\n      ...FirstPush\n    }\n    timeline(project: $project, atLeast: $atLeast) {\n      push {\n        position\n        ...PushHeader\n      }\n      ...Timeline\n    }\n    pushes(project: $project, ignored: true, first: 1, atLeast: $atLeast) {\n      position\n      diagnosis {\n        ...DiagnosisFields\n      }\n    }\n  }\n": types.LastPushDocument,
    "\n  fragment ProjectItem on Project {\n    name\n    branch\n    status {\n      environment\n      service\n      ...StatusRow\n    }\n    lastPush {\n      status\n      receivedAt\n    }\n  }\n": types.ProjectItemFragmentDoc,
    "\n  fragment PushHeader on Push {\n    status\n    branch\n    commit\n    forced\n    author\n    message\n    receivedAt\n    finishedAt\n  }\n": types.PushHeaderFragmentDoc,
    "\n  fragment StatusRow on Status {\n    projectName\n    environment\n    service\n    environmentName\n    serviceName\n    commit\n    address\n    phase\n    quarantined {\n      release\n    }\n  }\n": types.StatusRowFragmentDoc,
    "\n  fragment Timeline on Timeline {\n    push {\n      builds {\n        id\n        ...BuildStage\n      }\n      deployments {\n        id\n        ...DeploymentStage\n      }\n    }\n    entries {\n      id\n      subject\n      text\n      ...Entry\n    }\n  }\n": types.TimelineFragmentDoc,
    "\n  fragment WhyStep on WhyStep {\n    cursor\n    event\n    type\n    at\n    subject\n    text\n    who\n    diagnosis {\n      ...DiagnosisFields\n    }\n  }\n": types.WhyStepFragmentDoc,
    "\n  query Why($project: ID!, $environment: ID!, $service: ID!, $atLeast: Cursor) {\n    why(project: $project, environment: $environment, service: $service, atLeast: $atLeast) {\n      environmentName\n      serviceName\n      asOf\n      since\n      release {\n        commit\n        image\n      }\n      steps {\n        ...WhyStep\n      }\n      beside {\n        subject\n        commit\n        outcome\n        text\n        steps {\n          ...WhyStep\n        }\n      }\n      more\n    }\n  }\n": types.WhyDocument,
    "\n  query BuildLog($build: ID!, $attempt: ID, $after: Int64!) {\n    buildLog(build: $build, attempt: $attempt, after: $after) {\n      attempt\n      text\n      next\n      done\n      nextAttempt\n    }\n  }\n": types.BuildLogDocument,
};

/**
 * The graphql function is used to parse GraphQL queries into a document that can be used by GraphQL clients.
 *
 *
 * @example
 * ```ts
 * const query = graphql(`query GetUser($id: ID!) { user(id: $id) { name } }`);
 * ```
 *
 * The query argument is unknown!
 * Please regenerate the types.
 */
export function graphql(source: string): unknown;

/**
 * The graphql function is used to parse GraphQL queries into a document that can be used by GraphQL clients.
 */
export function graphql(source: "\n  fragment DiagnosisFields on Diagnosis {\n    code\n    title\n    step\n    error\n    reason\n    fixes\n    run\n    docs\n    log\n  }\n"): (typeof documents)["\n  fragment DiagnosisFields on Diagnosis {\n    code\n    title\n    step\n    error\n    reason\n    fixes\n    run\n    docs\n    log\n  }\n"];
/**
 * The graphql function is used to parse GraphQL queries into a document that can be used by GraphQL clients.
 */
export function graphql(source: "\n  query Head {\n    head\n  }\n"): (typeof documents)["\n  query Head {\n    head\n  }\n"];
/**
 * The graphql function is used to parse GraphQL queries into a document that can be used by GraphQL clients.
 */
export function graphql(source: "\n  subscription Events($after: Cursor) {\n    events(after: $after) {\n      cursor\n      events {\n        position\n      }\n    }\n  }\n"): (typeof documents)["\n  subscription Events($after: Cursor) {\n    events(after: $after) {\n      cursor\n      events {\n        position\n      }\n    }\n  }\n"];
/**
 * The graphql function is used to parse GraphQL queries into a document that can be used by GraphQL clients.
 */
export function graphql(source: "\n  fragment BuildStage on Build {\n    id\n    phase\n    dockerfile\n    startedAt\n    finishedAt\n    diagnosis {\n      ...DiagnosisFields\n    }\n  }\n"): (typeof documents)["\n  fragment BuildStage on Build {\n    id\n    phase\n    dockerfile\n    startedAt\n    finishedAt\n    diagnosis {\n      ...DiagnosisFields\n    }\n  }\n"];
/**
 * The graphql function is used to parse GraphQL queries into a document that can be used by GraphQL clients.
 */
export function graphql(source: "\n  query Projects($atLeast: Cursor, $first: Int!) {\n    projects(first: $first, atLeast: $atLeast) {\n      id\n      name\n      lastPush {\n        position\n      }\n      ...ProjectItem\n    }\n  }\n"): (typeof documents)["\n  query Projects($atLeast: Cursor, $first: Int!) {\n    projects(first: $first, atLeast: $atLeast) {\n      id\n      name\n      lastPush {\n        position\n      }\n      ...ProjectItem\n    }\n  }\n"];
/**
 * The graphql function is used to parse GraphQL queries into a document that can be used by GraphQL clients.
 */
export function graphql(source: "\n  query NamedProject($name: String!, $atLeast: Cursor) {\n    project(name: $name, atLeast: $atLeast) {\n      id\n      name\n    }\n  }\n"): (typeof documents)["\n  query NamedProject($name: String!, $atLeast: Cursor) {\n    project(name: $name, atLeast: $atLeast) {\n      id\n      name\n    }\n  }\n"];
/**
 * The graphql function is used to parse GraphQL queries into a document that can be used by GraphQL clients.
 */
export function graphql(source: "\n  fragment DeploymentStage on Deployment {\n    serviceName\n    environmentName\n    phase\n    progress {\n      wanted\n      available\n    }\n    startedAt\n    finishedAt\n    diagnosis {\n      ...DiagnosisFields\n    }\n    rollbackDiagnosis {\n      ...DiagnosisFields\n    }\n  }\n"): (typeof documents)["\n  fragment DeploymentStage on Deployment {\n    serviceName\n    environmentName\n    phase\n    progress {\n      wanted\n      available\n    }\n    startedAt\n    finishedAt\n    diagnosis {\n      ...DiagnosisFields\n    }\n    rollbackDiagnosis {\n      ...DiagnosisFields\n    }\n  }\n"];
/**
 * The graphql function is used to parse GraphQL queries into a document that can be used by GraphQL clients.
 */
export function graphql(source: "\n  fragment Entry on TimelineEntry {\n    id\n    type\n    severity\n    text\n    at\n  }\n"): (typeof documents)["\n  fragment Entry on TimelineEntry {\n    id\n    type\n    severity\n    text\n    at\n  }\n"];
/**
 * The graphql function is used to parse GraphQL queries into a document that can be used by GraphQL clients.
 */
export function graphql(source: "\n  fragment FirstPush on Project {\n    name\n    repository\n    branch\n    gitRemote\n    webhookUrl\n  }\n"): (typeof documents)["\n  fragment FirstPush on Project {\n    name\n    repository\n    branch\n    gitRemote\n    webhookUrl\n  }\n"];
/**
 * The graphql function is used to parse GraphQL queries into a document that can be used by GraphQL clients.
 */
export function graphql(source: "\n  query LastPush($project: ID!, $atLeast: Cursor) {\n    project(id: $project, atLeast: $atLeast) {\n      ...FirstPush\n    }\n    timeline(project: $project, atLeast: $atLeast) {\n      push {\n        position\n        ...PushHeader\n      }\n      ...Timeline\n    }\n    pushes(project: $project, ignored: true, first: 1, atLeast: $atLeast) {\n      position\n      diagnosis {\n        ...DiagnosisFields\n      }\n    }\n  }\n"): (typeof documents)["\n  query LastPush($project: ID!, $atLeast: Cursor) {\n    project(id: $project, atLeast: $atLeast) {\n      ...FirstPush\n    }\n    timeline(project: $project, atLeast: $atLeast) {\n      push {\n        position\n        ...PushHeader\n      }\n      ...Timeline\n    }\n    pushes(project: $project, ignored: true, first: 1, atLeast: $atLeast) {\n      position\n      diagnosis {\n        ...DiagnosisFields\n      }\n    }\n  }\n"];
/**
 * The graphql function is used to parse GraphQL queries into a document that can be used by GraphQL clients.
 */
export function graphql(source: "\n  fragment ProjectItem on Project {\n    name\n    branch\n    status {\n      environment\n      service\n      ...StatusRow\n    }\n    lastPush {\n      status\n      receivedAt\n    }\n  }\n"): (typeof documents)["\n  fragment ProjectItem on Project {\n    name\n    branch\n    status {\n      environment\n      service\n      ...StatusRow\n    }\n    lastPush {\n      status\n      receivedAt\n    }\n  }\n"];
/**
 * The graphql function is used to parse GraphQL queries into a document that can be used by GraphQL clients.
 */
export function graphql(source: "\n  fragment PushHeader on Push {\n    status\n    branch\n    commit\n    forced\n    author\n    message\n    receivedAt\n    finishedAt\n  }\n"): (typeof documents)["\n  fragment PushHeader on Push {\n    status\n    branch\n    commit\n    forced\n    author\n    message\n    receivedAt\n    finishedAt\n  }\n"];
/**
 * The graphql function is used to parse GraphQL queries into a document that can be used by GraphQL clients.
 */
export function graphql(source: "\n  fragment StatusRow on Status {\n    projectName\n    environment\n    service\n    environmentName\n    serviceName\n    commit\n    address\n    phase\n    quarantined {\n      release\n    }\n  }\n"): (typeof documents)["\n  fragment StatusRow on Status {\n    projectName\n    environment\n    service\n    environmentName\n    serviceName\n    commit\n    address\n    phase\n    quarantined {\n      release\n    }\n  }\n"];
/**
 * The graphql function is used to parse GraphQL queries into a document that can be used by GraphQL clients.
 */
export function graphql(source: "\n  fragment Timeline on Timeline {\n    push {\n      builds {\n        id\n        ...BuildStage\n      }\n      deployments {\n        id\n        ...DeploymentStage\n      }\n    }\n    entries {\n      id\n      subject\n      text\n      ...Entry\n    }\n  }\n"): (typeof documents)["\n  fragment Timeline on Timeline {\n    push {\n      builds {\n        id\n        ...BuildStage\n      }\n      deployments {\n        id\n        ...DeploymentStage\n      }\n    }\n    entries {\n      id\n      subject\n      text\n      ...Entry\n    }\n  }\n"];
/**
 * The graphql function is used to parse GraphQL queries into a document that can be used by GraphQL clients.
 */
export function graphql(source: "\n  fragment WhyStep on WhyStep {\n    cursor\n    event\n    type\n    at\n    subject\n    text\n    who\n    diagnosis {\n      ...DiagnosisFields\n    }\n  }\n"): (typeof documents)["\n  fragment WhyStep on WhyStep {\n    cursor\n    event\n    type\n    at\n    subject\n    text\n    who\n    diagnosis {\n      ...DiagnosisFields\n    }\n  }\n"];
/**
 * The graphql function is used to parse GraphQL queries into a document that can be used by GraphQL clients.
 */
export function graphql(source: "\n  query Why($project: ID!, $environment: ID!, $service: ID!, $atLeast: Cursor) {\n    why(project: $project, environment: $environment, service: $service, atLeast: $atLeast) {\n      environmentName\n      serviceName\n      asOf\n      since\n      release {\n        commit\n        image\n      }\n      steps {\n        ...WhyStep\n      }\n      beside {\n        subject\n        commit\n        outcome\n        text\n        steps {\n          ...WhyStep\n        }\n      }\n      more\n    }\n  }\n"): (typeof documents)["\n  query Why($project: ID!, $environment: ID!, $service: ID!, $atLeast: Cursor) {\n    why(project: $project, environment: $environment, service: $service, atLeast: $atLeast) {\n      environmentName\n      serviceName\n      asOf\n      since\n      release {\n        commit\n        image\n      }\n      steps {\n        ...WhyStep\n      }\n      beside {\n        subject\n        commit\n        outcome\n        text\n        steps {\n          ...WhyStep\n        }\n      }\n      more\n    }\n  }\n"];
/**
 * The graphql function is used to parse GraphQL queries into a document that can be used by GraphQL clients.
 */
export function graphql(source: "\n  query BuildLog($build: ID!, $attempt: ID, $after: Int64!) {\n    buildLog(build: $build, attempt: $attempt, after: $after) {\n      attempt\n      text\n      next\n      done\n      nextAttempt\n    }\n  }\n"): (typeof documents)["\n  query BuildLog($build: ID!, $attempt: ID, $after: Int64!) {\n    buildLog(build: $build, attempt: $attempt, after: $after) {\n      attempt\n      text\n      next\n      done\n      nextAttempt\n    }\n  }\n"];

export function graphql(source: string) {
  return (documents as any)[source] ?? {};
}

export type DocumentType<TDocumentNode extends DocumentNode<any, any>> = TDocumentNode extends DocumentNode<  infer TType,  any>  ? TType  : never;
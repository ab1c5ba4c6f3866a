export {
  describeDecision,
  type Candidates,
  type CompiledPolicy,
  type Decision,
  type DryRun,
  type UnusablePolicy,
} from "./decide.ts";
export type { PolicyRequest } from "./matcher.ts";
export { PolicyIndex, type PolicyChange, type PolicyQuestion } from "./policy-index.ts";

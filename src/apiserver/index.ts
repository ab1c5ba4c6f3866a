export { apiserverError } from "./errors.ts";
export { ensureKubectl, type KubectlOptions } from "./kubectl.ts";

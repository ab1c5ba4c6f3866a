export { apiserverError } from "./errors.ts";
export { createKubeconfig, type KubeconfigOptions } from "./kubeconfig.ts";
export { ensureHelm, ensureKubectl, type KubectlOptions } from "./kubectl.ts";
export { openPki } from "./pki.ts";
export { ApiServer, type ApiServerOptions, type ListenAddress } from "./server.ts";

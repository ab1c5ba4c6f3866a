/** Label with the values `ambient` and `none`, on pods and namespaces. */
export const DATAPLANE_MODE_LABEL = "istio.io/dataplane-mode";
/** Label with the values `true` and `false`, on pods and namespaces. */
export const MTLS_LABEL = "io.cilium/mtls-enabled";
/** All labels by which pods are enrolled, and kept from it. */
export const ENROL_LABELS: readonly string[] = [DATAPLANE_MODE_LABEL, MTLS_LABEL];

/**
 * Set to `enabled` on a pod by its node's agent once the pod's connections are redirected; the controller then publishes the pod as
 * HBONE (istio/istio cni/pkg/util, the same name and values).
 */
export const REDIRECTION_ANNOTATION = "ambient.istio.io/redirection";

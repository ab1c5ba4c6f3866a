/** The agents' DaemonSet, and the value of its pods' label `app`. */
export const AGENTS = "veil-agent";
/** With "true" on the agents' DaemonSet, Veil leaves all nodes: no pod is enrolled any more, and nothing holds pods back. */
export const LEAVE_ANNOTATION = "veil.dev/leave";
/** Set to "true" by an agent on its own pod when it has left its node: no pod there is redirected, and the CNI plugin is gone. */
export const LEFT_ANNOTATION = "veil.dev/left";

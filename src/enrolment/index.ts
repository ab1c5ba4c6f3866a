export { decideEligibility, heededLabels, misreadLabels, type Eligibility, type PodFacts } from "./eligibility.ts";
export { Enrolment, type EnrolmentOptions, type PodStatus } from "./enrolment.ts";
export {
  DEFAULT_TIMES,
  type Announcer,
  type EnrolmentState,
  type EnrolmentTimes,
  type EnrolmentTools,
} from "./enrolment-state.ts";
export { guardPort } from "./guard.ts";
export { enrolmentMetrics } from "./metrics.ts";
export { directoryFinder, procFinder, type NetnsFinder } from "./pod-netns.ts";
export { probePorts } from "./probe-ports.ts";
export { PROBE_SOURCES, Probes } from "./probes.ts";
export {
  checkRedirection,
  nftRedirector,
  PROXY_PORTS,
  REDIRECTION_TABLE,
  type CaptureOptions,
  type RedirectionState,
  type Redirector,
} from "./redirection.ts";
export { ZdsServer, type ZdsPod, type ZdsServerOptions } from "./zds-server.ts";

export {
  nftRedirector,
  PROXY_PORTS,
  REDIRECTION_TABLE,
  type CaptureOptions,
  type RedirectionState,
  type Redirector,
} from "./redirection.ts";

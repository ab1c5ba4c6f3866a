import { defineErrors } from "#base/errors";

/** Failures of DNS capture. */
export const dnsError = defineErrors("dns", {
  DNS_LISTEN: {
    when: "the DNS port in a pod's network namespace could not be opened",
    hint: "something in the pod listens on 15053 already, or the pod has ended; ambient.istio.io/dns-capture=false leaves a pod's DNS alone",
  },
  DNS_UPSTREAM: {
    when: "no nameserver answered a question that was forwarded",
    hint: "check the nameservers of the proxy's /etc/resolv.conf, and that pods of this node reach them on port 53; the client gets SERVFAIL",
  },
});

import type { Namespace, Pod } from "#kube";
import type { Finding } from "./finding.ts";
import { judgePods, type JudgedPod } from "./pods.ts";

/** A running pod, `namespace/name`, with what differs from the usual. */
export function podAt(
  place: string,
  more: {
    labels?: Record<string, string>;
    ip?: string;
    ports?: Record<string, number>;
    enrolled?: boolean;
    node?: string;
    /** The port of its readiness probe. */
    probe?: number | string;
  } = {},
): Pod {
  const [namespace = "", name = ""] = place.split("/");
  const { labels = {}, ip = "10.0.0.1", ports = {}, enrolled = false, node = "node1", probe } = more;
  const annotations: Record<string, string> = enrolled ? { "ambient.istio.io/redirection": "enabled" } : {};
  return {
    metadata: { name, namespace, uid: `uid-${name}`, labels, annotations },
    spec: {
      nodeName: node,
      containers: [
        {
          name: "main",
          ports: Object.entries(ports).map(([name, containerPort]) => ({ name, containerPort })),
          ...(probe !== undefined && { readinessProbe: { httpGet: { port: probe } } }),
        },
      ],
    },
    status: { phase: "Running", podIP: ip, podIPs: [{ ip }], startTime: "2026-01-01T00:00:00Z" },
  };
}

/** A namespace; `enrolled` ones carry the label. */
export function namespaceOf(
  name: string,
  labels: Record<string, string> = { "io.cilium/mtls-enabled": "true" },
): Namespace {
  return { metadata: { name, labels } };
}

/** Pods as judged by those namespaces. */
export function judged(pods: readonly Pod[], namespaces: readonly Namespace[]): readonly JudgedPod[] {
  return judgePods(pods, namespaces);
}

/** `outcome: what` of each finding. */
export function said(findings: readonly Finding[]): string[] {
  return findings.map(({ outcome, what }) => `${outcome}: ${what}`);
}

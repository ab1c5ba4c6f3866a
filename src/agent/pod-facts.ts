import type { PodFacts } from "#enrolment";
import type { Container, Pod } from "#kube";

/** What enrolment wants to know of a pod of the API. */
export function podFacts(pod: Pod): PodFacts {
  const { uid = "", name = "", namespace = "default", labels = {}, annotations = {} } = pod.metadata ?? {};
  const { serviceAccountName = "default", hostNetwork = false } = pod.spec ?? {};
  const phase = pod.status?.phase ?? "Pending";
  const account = { serviceAccount: serviceAccountName, hostNetwork, phase };
  return { uid, name, namespace, ...account, labels, annotations, probePorts: probePorts(pod) };
}

/** The ports of a pod at which its kubelet asks over the network: probes, and hooks that are HTTP requests. */
function probePorts(pod: Pod): number[] {
  const { containers = [], initContainers = [] } = pod.spec ?? {};
  return [...new Set([...containers, ...initContainers].flatMap(portsOf))];
}

function portsOf(container: Container): number[] {
  const { livenessProbe, readinessProbe, startupProbe, lifecycle } = container;
  const probes = [livenessProbe, readinessProbe, startupProbe].map((probe) => probe?.grpc ?? ownRequest(probe));
  const hooks = [lifecycle?.postStart, lifecycle?.preStop].map(ownRequest);
  return [...probes, ...hooks].flatMap((asked) => {
    const named = container.ports?.find(({ name, protocol = "TCP" }) => name === asked?.port && protocol === "TCP");
    const number = named?.containerPort ?? Number(asked?.port);
    return Number.isInteger(number) ? [number] : [];
  });
}

type Asks = Container["readinessProbe"] | NonNullable<Container["lifecycle"]>["preStop"];

/** The request of a probe or hook. One that names a host does not go to the pod. */
function ownRequest(asks: Asks): { readonly port: number | string } | undefined {
  const request = asks?.httpGet ?? asks?.tcpSocket;
  return request?.host ? undefined : request;
}

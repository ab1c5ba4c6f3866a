import type { Container, Pod } from "#kube";

/** The ports of a pod at which its kubelet asks over the network: probes, and hooks that are HTTP requests. */
export function probePorts({ spec }: Pod): number[] {
  const { containers = [], initContainers = [] } = spec ?? {};
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

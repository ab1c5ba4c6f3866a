import { resourceRef, type KubeObject } from "./object.ts";

/** What of a label selector of the API may stand in an object. */
export interface LabelSelector {
  readonly matchLabels?: Readonly<Record<string, string>>;
  readonly matchExpressions?: readonly {
    readonly key: string;
    readonly operator: string;
    readonly values?: readonly string[];
  }[];
}

/** A Gateway of the Gateway API, as far as it is read (gateway.networking.k8s.io/v1). */
export interface Gateway extends KubeObject {
  readonly spec?: {
    readonly gatewayClassName?: string;
    /** Where it is to be, or, of one that nobody runs here, where it is. */
    readonly addresses?: readonly { readonly type?: string; readonly value?: string }[];
    readonly listeners?: readonly {
      readonly name?: string;
      readonly port?: number;
      readonly protocol?: string;
      readonly allowedRoutes?: {
        readonly namespaces?: { readonly from?: string; readonly selector?: LabelSelector };
      };
    }[];
  };
  readonly status?: { readonly addresses?: readonly { readonly type?: string; readonly value?: string }[] };
}

/** A GatewayClass: its labels and annotations are the defaults of its Gateways. */
export type GatewayClass = KubeObject;

const group = "gateway.networking.k8s.io";

/** The kinds of the Gateway API that Veil reads. A cluster may be without them: see `optional` of {@link InformerOptions}. */
export const gatewayResources = {
  gateways: resourceRef<Gateway>({ group, version: "v1", plural: "gateways", kind: "Gateway", namespaced: true }),
  gatewayClasses: resourceRef<GatewayClass>({
    group,
    version: "v1",
    plural: "gatewayclasses",
    kind: "GatewayClass",
    namespaced: false,
  }),
} as const;

/** Whether labels are selected. No selector selects nothing, an empty one everything; an unknown operator nothing. */
export function selectsLabels(selector: LabelSelector | undefined, labels: Readonly<Record<string, string>>): boolean {
  if (selector === undefined) return false;
  const { matchLabels = {}, matchExpressions = [] } = selector;
  return (
    Object.entries(matchLabels).every(([name, value]) => labels[name] === value) &&
    matchExpressions.every(({ key, operator, values = [] }) => meets(labels[key], operator, values))
  );
}

function meets(value: string | undefined, operator: string, values: readonly string[]): boolean {
  if (operator === "Exists") return value !== undefined;
  if (operator === "DoesNotExist") return value === undefined;
  if (operator === "In") return value !== undefined && values.includes(value);
  return operator === "NotIn" && (value === undefined || !values.includes(value));
}

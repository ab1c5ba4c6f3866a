/**
 * The names under which a name that a pod asks for may be known (zt src/dns: short forms as Kubernetes' search list makes them, and
 * wildcards). Names here are lower case, labels joined by dots, without the last dot.
 */

/** One way to read a name. */
export interface Alias {
  readonly name: string;
  /** How many of the first labels of the question are left after a search domain was stripped; undefined: none was. */
  readonly strippedTo: number | undefined;
}

/** Whose names: the asking pod's namespace, and the cluster's domain. */
export interface SearchScope {
  readonly namespace: string;
  readonly clusterDomain: string;
}

/**
 * All readings of a name, the most literal first: the name itself, what Kubernetes' short forms make of it, and the same without each of
 * the search domains that a resolver appends (`<namespace>.svc.<domain>`, `svc.<domain>`, `<domain>`).
 */
export function aliases(name: string, scope: SearchScope): readonly Alias[] {
  const found = new Map<string, Alias>();
  const add = (alias: string, strippedTo: number | undefined): void => {
    if (!found.has(alias)) found.set(alias, { name: alias, strippedTo });
  };
  const addForms = (form: string, strippedTo: number | undefined): void => {
    add(form, strippedTo);
    for (const full of kubernetesNames(form, scope)) add(full, strippedTo);
  };
  addForms(name, undefined);
  for (const domain of searchDomains(scope)) {
    if (!name.endsWith(`.${domain}`)) continue;
    const stripped = name.slice(0, -domain.length - 1);
    if (stripped !== "") addForms(stripped, stripped.split(".").length);
  }
  return [...found.values()];
}

/** The search list that Kubernetes gives the pods of a namespace. */
export function searchDomains({ namespace, clusterDomain }: SearchScope): readonly string[] {
  return [`${namespace}.svc.${clusterDomain}`, `svc.${clusterDomain}`, clusterDomain];
}

/** The full names that a short form of one to four labels can stand for: a service's, or that of a pod with a subdomain. */
export function kubernetesNames(name: string, { namespace, clusterDomain }: SearchScope): readonly string[] {
  const labels = name.split(".");
  const inOwnNamespace = `${name}.${namespace}.svc.${clusterDomain}`;
  const inServices = `${name}.svc.${clusterDomain}`;
  const inCluster = `${name}.${clusterDomain}`;
  const saysService = labels.at(-1) === "svc";
  switch (labels.length) {
    case 1:
      return [inOwnNamespace];
    case 2:
      return [inServices, inOwnNamespace];
    case 3:
      return saysService ? [inCluster, inServices] : [inServices];
    case 4:
      return saysService ? [inCluster] : [];
    default:
      return [];
  }
}

/** A name, then the wildcards that cover it, the narrowest first: `a.b.c`, `*.b.c`, `*.c`. */
export function wildcards(name: string): readonly string[] {
  const labels = name.split(".");
  return [name, ...labels.slice(1).map((_, i) => `*.${labels.slice(i + 1).join(".")}`)];
}

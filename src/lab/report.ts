import type { LabStatus, RoleStatus } from "./status.ts";

const MIB = 1 << 20;

/** A lab's state as a table for people. */
export function formatStatus(status: LabStatus): string {
  const rows: string[][] = [["WHERE", "ROLE", "HEALTH", "PID", "MEMORY", "RESTARTS", ""]];
  const add = (where: string, roles: readonly RoleStatus[]): void => {
    for (const role of roles) {
      rows.push([
        where,
        role.role,
        role.health,
        role.pid === undefined ? "-" : String(role.pid),
        role.memoryBytes === 0 ? "-" : `${Math.round(role.memoryBytes / MIB)} MiB`,
        role.restarts === undefined ? "-" : String(role.restarts),
        role.reason ?? "",
      ]);
    }
  };
  add("control", status.control.roles);
  for (const node of status.nodes) add(node.name, node.roles);
  const places = [
    ["", "NAMESPACE", "UNDERLAY", "PODS"],
    ["control", status.control.netns, status.control.address, "-"],
    ...status.nodes.map((node) => [
      node.name,
      node.netns,
      `${node.interface} ${node.addresses.filter((address) => !address.includes(":")).join(" ")}`,
      node.podRange,
    ]),
  ];
  const head = `lab ${status.name}: ${status.ready ? "ready" : "not ready"}, API ${status.server}`;
  return `${head}\n\n${align(places)}\n${align(rows)}`;
}

function align(rows: readonly (readonly string[])[]): string {
  const widths = (rows[0] ?? []).map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)));
  return rows
    .map(
      (row) =>
        `${row
          .map((cell, column) => cell.padEnd(widths[column] ?? 0))
          .join("  ")
          .trimEnd()}\n`,
    )
    .join("");
}

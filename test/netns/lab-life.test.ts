import assert from "node:assert/strict";
import type { ChildProcess } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { after, before, describe, it } from "node:test";
import { sleep, systemClock } from "#base/clock";
import { resources } from "#kube";
import { isPodReady, labClient, labLayout, type LabStatus, type RoleStatus } from "#lab";
import { leftoversOf, linksAndRules } from "./lab-leftovers.ts";
import { eventually, must, requireRoot, run, veil, VEIL } from "./harness.ts";

const clock = systemClock();
const NAME = "vt-lab-life";
const SECOND = "vt-lab-second";

/** A number by which the one process of the pod is found on the whole machine. */
const SLEEP = String(1_000_000 + process.pid);

const POD = {
  apiVersion: "v1",
  kind: "Pod",
  metadata: { name: "sleeper", namespace: "default" },
  spec: { nodeName: "node1", containers: [{ name: "main", image: "none", command: ["sleep", SLEEP] }] },
};

describe("a lab's life", () => {
  requireRoot();
  const lab = labLayout(NAME);
  const outside = linksAndRules();
  let first: LabStatus & { seconds: number };

  before(async () => {
    await must([VEIL, "lab", "down", "--name", NAME]);
    first = JSON.parse(await must([VEIL, "lab", "up", "--name", NAME, "-o", "json"])) as typeof first;
  });
  after(async () => {
    await must([VEIL, "lab", "down", "--name", SECOND]);
    await must([VEIL, "lab", "down", "--name", NAME]);
  });

  it("is ready, with every role a process of its own", () => {
    assert.equal(first.ready, true);
    assert.deepEqual(first.control.roles.map(({ role }) => role).toSorted(), [
      "apiserver",
      "controllers",
      "supervisor",
    ]);
    for (const node of first.nodes) {
      const roles = node.roles.map(({ role }) => role).filter((role) => role !== "controller");
      assert.deepEqual(roles.toSorted(), ["agent", "kubelet", "proxy"]);
    }
    const pids = allRoles(first).map(({ pid }) => pid);
    assert.equal(new Set(pids).size, pids.length);
    assert.ok(allRoles(first).every(({ memoryBytes }) => memoryBytes > 1 << 20));
  });

  it("tells where its nodes are", () => {
    assert.deepEqual(
      first.nodes.map(({ name, netns, interface: link, podRange }) => [name, netns, link, podRange]),
      [
        ["node1", `veil-${NAME}-node1`, "eth0", "10.244.1.0/24"],
        ["node2", `veil-${NAME}-node2`, "eth0", "10.244.2.0/24"],
      ],
    );
    assert.ok(first.nodes[0]?.addresses.includes("172.20.0.11/24"));
  });

  it("serves kubectl through what `lab env` prints", async () => {
    const script = `eval "$(${VEIL} lab env --name ${NAME})"; ${VEIL} kubectl get nodes -o name; eval "$(${VEIL} lab env --unset)"; echo "\${KUBECONFIG:-unset}"`;
    assert.equal(await must(["bash", "-ec", script]), "node/node1\nnode/node2\nunset\n");
  });

  it("runs commands on nodes, with their hostname, sockets, output and exit code", async () => {
    assert.equal((await veil("lab", "exec", "--name", NAME, "node2", "--", "hostname")).stdout, "node2\n");
    assert.equal((await veil("lab", "exec", "--name", NAME, "node2", "--", "sh", "-c", "exit 7")).code, 7);
    const sockets = await veil("lab", "exec", "--name", NAME, "node1", "--", "ls", "/run/veil");
    assert.match(sockets.stdout, /agent\.sock/);
    assert.equal(existsSync("/run/veil/agent.sock"), false);
  });

  it("has no way out: no namespace of it has a default route", async () => {
    for (const netns of ["switch", "control", "node1", "node2"]) {
      assert.equal(await must(["ip", "-n", `veil-${NAME}-${netns}`, "route", "show", "default"]), "");
    }
  });

  it("stays as it is when it is brought up again", async () => {
    const again = JSON.parse(await must([VEIL, "lab", "up", "--name", NAME, "-o", "json"])) as typeof first;
    assert.deepEqual(pidsByRole(again), pidsByRole(first));
  });

  it("runs a pod that outlives its kubelet, the API server, the controllers and the supervisor", async () => {
    await must([VEIL, "kubectl", "apply", "-f", "-"], {
      env: { KUBECONFIG: lab.kubeconfig },
      input: JSON.stringify(POD),
    });
    const sleeper = await podPid(lab);
    for (const role of ["kubelet", "apiserver", "controllers", "supervisor"]) {
      const killed = allRoles(await status()).find((each) => each.role === role);
      assert.ok(killed?.pid !== undefined, `${role} runs`);
      kill(killed.pid);
      // The supervisor starts the others again; itself is started by the next `up`.
      if (role === "supervisor") await must([VEIL, "lab", "up", "--name", NAME]);
      await eventually(`${role} to be back`, async () => {
        const now = await status();
        const back = allRoles(now).find((each) => each.role === role);
        assert.notEqual(back?.pid, killed.pid);
        assertReady(now);
        return true;
      });
      assert.equal(await podPid(lab), sleeper, `the pod's process after ${role} was killed`);
    }
    assert.equal((await veil("lab", "exec", "--name", NAME, "default/sleeper", "--", "hostname")).stdout, "sleeper\n");
  });

  it("says what is down, with exit code 1, and is repaired by up after all its processes were killed", async () => {
    for (const { pid } of allRoles(await status())) if (pid !== undefined) kill(pid);
    const broken = await veil("lab", "status", "--name", NAME, "-o", "json");
    assert.equal(broken.code, 1);
    const supervisor = allRoles(JSON.parse(broken.stdout) as LabStatus).find(({ role }) => role === "supervisor");
    assert.deepEqual([supervisor?.health, supervisor?.pid], ["down", undefined]);
    await must([VEIL, "lab", "up", "--name", NAME]);
    await ready();
  });

  it("gets its links and namespaces back when they were removed", async () => {
    const env = { KUBECONFIG: lab.kubeconfig };
    const pod = await must([VEIL, "kubectl", "get", "pod", "sleeper", "-o", "jsonpath={.status.podIP}"], { env });
    for (const port of ["node1", "node2"]) {
      await must(["ip", "-n", `veil-${NAME}-switch`, "link", "delete", port]);
      await must([VEIL, "lab", "up", "--name", NAME]);
      // Nothing listens in the pod: a refusal is its answer.
      for (const node of ["node1", "node2"]) {
        await eventually(`the pod from ${node}`, async () => /refused/.test(await dial(node, pod)) || undefined);
      }
    }
    assert.ok(await reachable("node1", "172.20.0.12"));
    await ready();
  });

  it("refuses to do half of a job on a full disk, and goes on when there is room", async () => {
    const file = `${lab.folder}/filler`;
    await run(["sh", "-c", `cat /dev/zero >${file}`]);
    const full = await veil("lab", "up", "--name", NAME, "--nodes", "3");
    assert.equal(full.code, 1);
    assert.match(full.stderr, /make room[^]*LAB_DISK_FULL/);
    await must(["rm", file]);
    await must([VEIL, "lab", "up", "--name", NAME]);
    assert.equal((await status()).nodes.length, 2);
    await ready();
  });

  it("grows, and loses again what a Ctrl-C has interrupted", async () => {
    const third = `/run/netns/veil-${NAME}-node3`;
    const interrupt = async (child: ChildProcess): Promise<void> => {
      while (!existsSync(third) && child.exitCode === null) await sleep(clock, 5);
      child.kill("SIGINT");
    };
    const up = await run([VEIL, "lab", "up", "--name", NAME, "--nodes", "3"], {
      started: (child) => void interrupt(child),
    });
    assert.equal(up.code, 130, up.stderr);
    assert.equal((await status()).nodes.length, 2);
    assert.equal(existsSync(third), false);
    await must([VEIL, "lab", "up", "--name", NAME, "--nodes", "3"]);
    assert.equal((await status()).nodes.length, 3);
    assert.ok(await reachable("node3", "172.20.0.11"));
  });

  it("does not notice a second lab beside it", async () => {
    await must([VEIL, "lab", "up", "--name", SECOND, "--nodes", "1"]);
    const before = pidsByRole(await status());
    const second = JSON.parse(await must([VEIL, "lab", "status", "--name", SECOND, "-o", "json"])) as LabStatus;
    assert.deepEqual(second.nodes[0]?.addresses.slice(0, 1), ["172.20.0.11/24"]);
    await must([VEIL, "lab", "down", "--name", SECOND]);
    assert.deepEqual(leftoversOf(SECOND), []);
    assert.deepEqual(pidsByRole(await status()), before);
    await ready();
  });

  it("leaves nothing behind, nor made anything where it was called", async () => {
    // What somebody runs inside goes too: it would keep a namespace alive.
    const begun = Promise.withResolvers<number>();
    const stranger = run(["ip", "netns", "exec", `veil-${NAME}-node1`, "sleep", "1000"], {
      started: ({ pid = 0 }) => begun.resolve(pid),
    });
    const comm = `/proc/${await begun.promise}/comm`;
    await eventually("somebody inside", () => readFileSync(comm, "utf8") === "sleep\n" || undefined);
    await must([VEIL, "lab", "down", "--name", NAME]);
    assert.equal((await stranger).code, 137);
    assert.deepEqual(leftoversOf(NAME), []);
    assert.equal(linksAndRules(), outside);
    assert.ok(!readFileSync("/proc/self/mountinfo", "utf8").includes(NAME));
  });

  async function status(): Promise<LabStatus> {
    return JSON.parse((await veil("lab", "status", "--name", NAME, "-o", "json")).stdout) as LabStatus;
  }

  async function ready(): Promise<void> {
    await eventually("every role to be ready", async () => {
      assertReady(await status());
      return true;
    });
  }

  async function reachable(node: string, address: string): Promise<boolean> {
    return (await dial(node, address)) === "";
  }

  /** Says what a connection from the node to a kubelet's port failed with. */
  async function dial(node: string, address: string): Promise<string> {
    const script = `exec 3<>/dev/tcp/${address}/10250`;
    const { code, stderr } = await veil(
      "lab",
      "exec",
      "--name",
      NAME,
      node,
      "--",
      "timeout",
      "20",
      "bash",
      "-c",
      script,
    );
    return code === 0 ? "" : stderr || `exit code ${code}`;
  }

  async function podPid({ kubeconfig }: { kubeconfig: string }): Promise<string> {
    assert.ok(existsSync(kubeconfig));
    const client = await labClient({ lab, clock });
    try {
      await eventually("the pod to be ready", async () => {
        const pod = await client.find(resources.pods, { namespace: "default", name: "sleeper" });
        return pod !== undefined && isPodReady(pod) ? true : undefined;
      });
      return (await must(["pgrep", "-f", `^sleep ${SLEEP}$`])).trim();
    } finally {
      client.close();
    }
  }
});

function kill(pid: number): void {
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // It has ended with its parent.
  }
}

function assertReady(status: LabStatus): void {
  const ill = allRoles(status).filter(({ health }) => health !== "ready");
  assert.deepEqual(ill, []);
  assert.equal(status.ready, true);
}

function allRoles(status: LabStatus): RoleStatus[] {
  return [...status.control.roles, ...status.nodes.flatMap(({ roles }) => roles)];
}

function pidsByRole(status: LabStatus): Record<string, number | undefined> {
  const named = (where: string, roles: readonly RoleStatus[]) =>
    roles.map(({ role, pid }) => [`${where} ${role}`, pid]);
  return Object.fromEntries([
    ...named("control", status.control.roles),
    ...status.nodes.flatMap(({ name, roles }) => named(name, roles)),
  ]) as Record<string, number | undefined>;
}

import { Command, InvalidArgumentError } from "commander";
import type { GivenValues } from "#install";
import type { CliContext } from "./context.ts";

interface Flags {
  readonly values: readonly string[];
  readonly set: readonly Setting[];
  readonly crds: boolean;
}

interface Setting {
  readonly path: string;
  readonly text: string;
}

/** `veil manifests`: what the chart installs, without Helm. */
export function manifestsCommand(context: CliContext, version: string): Command {
  return new Command("manifests")
    .description("print the objects of an installation, for kubectl apply (the same that the Helm chart makes)")
    .option("-f, --values <file>", "values as in deploy/chart/values.yaml; several: the later counts more", collect, [])
    .option("--set <path=value>", "one value, read as YAML; counts more than files", collectSetting, [])
    .option("--no-crds", "without the kinds of policies and entries: Istio, for one, has installed them")
    .action(async (flags: Flags) => {
      const { readFile } = await import("node:fs/promises");
      const { parse, stringify } = await import("yaml");
      const { installedKinds, nested, readValues, renderInstallation } = await import("#install");
      const files = await Promise.all(flags.values.map((file) => readFile(file, "utf8")));
      const given = files.map((text) => (parse(text) ?? {}) as GivenValues); // readValues refuses what is none
      const set = flags.set.map(({ path, text }) => nested(path, parse(text)));
      const objects = renderInstallation(readValues(...given, ...set), version);
      for (const object of [...(flags.crds ? installedKinds() : []), ...objects]) {
        context.out(`---\n${stringify(object, { aliasDuplicateObjects: false })}`);
      }
    });
}

function collect(file: string, files: readonly string[]): readonly string[] {
  return [...files, file];
}

function collectSetting(given: string, settings: readonly Setting[]): readonly Setting[] {
  const at = given.indexOf("=");
  if (at <= 0) throw new InvalidArgumentError("Write path=value, for example controller.replicas=3.");
  return [...settings, { path: given.slice(0, at), text: given.slice(at + 1) }];
}

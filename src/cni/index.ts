export {
  deriveList,
  findSource,
  isConfiguration,
  isOwn,
  ownNameFor,
  PLUGIN_NAME,
  readEntry,
  type PluginEntry,
} from "./chain.ts";
export { CniInstaller, uninstall, type InstallerOptions, type InstallStatus } from "./installer.ts";
export { cniMetrics } from "./metrics.ts";
export { CniServer, type CniServerOptions } from "./server.ts";

export { formatReport, type DemoReport } from "./report.ts";
export { runDemo, type DemoLab, type DemoOptions } from "./run.ts";

export { adoptNetns, inNetns, openNetns, type Netns } from "./netns.ts";

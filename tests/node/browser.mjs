// The official TypeScript SDK in a browser: bundled by esbuild, called by the test through window.useSdk.
import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";

window.useSdk = async (url, token, era) => {
  const mode = era === "newest" ? { versionNegotiation: { mode: "auto" } } : {};
  const client = new Client({ name: `browser-${era}`, version: "1.0.0" }, mode);
  const options = { requestInit: { headers: { Authorization: `Bearer ${token}` } } };
  await client.connect(new StreamableHTTPClientTransport(new URL(url), options));
  const tools = (await client.listTools()).tools.map((tool) => tool.name);
  const moments = [];
  const call = { name: "countdown", arguments: { n: 3, seconds: 0.2 } };
  const done = await client.callTool(call, { onprogress: () => moments.push(performance.now()) });
  await client.close();
  return { tools, done: done.content[0].text, steps: moments.length, spread: moments.at(-1) - moments[0] };
};

// node sdk.mjs URL TOKEN v1|handshake|newest: connect with an official TypeScript SDK, use it, print one JSON object.
const [url, token, era] = process.argv.slice(2);
const options = { requestInit: { headers: { Authorization: `Bearer ${token}` } } };

let client, transport;
if (era === "v1") {
  const { Client } = await import("@modelcontextprotocol/sdk/client/index.js");
  const { StreamableHTTPClientTransport } = await import("@modelcontextprotocol/sdk/client/streamableHttp.js");
  client = new Client({ name: "ts-v1", version: "1.0.0" });
  transport = new StreamableHTTPClientTransport(new URL(url), options);
} else {
  const { Client, StreamableHTTPClientTransport } = await import("@modelcontextprotocol/client");
  const mode = era === "newest" ? { versionNegotiation: { mode: "auto" } } : {};
  client = new Client({ name: `ts-v2-${era}`, version: "1.0.0" }, mode);
  transport = new StreamableHTTPClientTransport(new URL(url), options);
}
await client.connect(transport);
const tools = (await client.listTools()).tools.map((tool) => tool.name);
const sum = await client.callTool({ name: "add", arguments: { a: 2, b: 3 } });
const steps = [];
const onprogress = (progress) => steps.push(progress.progress);
const call = { name: "countdown", arguments: { n: 3, seconds: 0.01 } };
const done = era === "v1" ? await client.callTool(call, undefined, { onprogress }) : await client.callTool(call, { onprogress });
console.log(JSON.stringify({ tools, sum: sum.structuredContent?.result, steps, done: done.content[0].text }));
await client.close();
process.exit(0);

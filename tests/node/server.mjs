// A server of the official TypeScript SDK, as its examples build one: Express, sessions, a tool that reports progress.
// Usage: node server.mjs PORT
import { randomUUID } from "node:crypto";
import express from "express";
import { McpServer } from "@modelcontextprotocol/sdk/server/mcp.js";
import { StreamableHTTPServerTransport } from "@modelcontextprotocol/sdk/server/streamableHttp.js";
import { z } from "zod";

function build() {
  const server = new McpServer({ name: "typescript", version: "1.0.0" });
  server.registerTool(
    "countdown",
    { description: "Count down", inputSchema: { n: z.number(), seconds: z.number() } },
    async ({ n, seconds }, extra) => {
      for (let step = 0; step <= n; step += 1) {
        await extra.sendNotification({
          method: "notifications/progress",
          params: { progressToken: extra._meta?.progressToken, progress: step, total: n },
        });
        await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
      }
      return { content: [{ type: "text", text: "liftoff" }] };
    },
  );
  return server;
}

const sessions = new Map();
const app = express();
app.use(express.json({ limit: "4mb" }));
app.all("/mcp", async (request, response) => {
  let transport = sessions.get(request.headers["mcp-session-id"]);
  if (!transport) {
    transport = new StreamableHTTPServerTransport({
      sessionIdGenerator: () => randomUUID(),
      onsessioninitialized: (id) => sessions.set(id, transport),
    });
    await build().connect(transport);
  }
  await transport.handleRequest(request, response, request.body);
});
app.listen(Number(process.argv[2]), "127.0.0.1", () => console.log("listening"));

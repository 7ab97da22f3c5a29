// HTTP service of the Node.js image: does before it listens what services do, on modules of Debian.
"use strict";
const express = require("express");
const axios = require("axios");
const { buildSchema, graphqlSync } = require("graphql");
const pg = require("pg");
const WebSocket = require("ws");
const lodash = require("lodash");
const moment = require("moment");
const Ajv = require("ajv");
const yaml = require("js-yaml");
const React = require("react");
const { renderToString } = require("react-dom/server");

const settings = yaml.load("name: service\nlimits: { rows: 100 }\n");
const isValid = new Ajv().compile({
  type: "object",
  properties: { name: { type: "string" }, limits: { type: "object" } },
  required: ["name"],
});
if (!isValid(settings)) throw new Error("the settings are not valid");
const schema = buildSchema("type Query { name: String, born: String }");
const pool = new pg.Pool({ host: "127.0.0.1", max: 1 });
const client = axios.create({ timeout: 1000 });
const sockets = new WebSocket.Server({ noServer: true });
const born = moment().toISOString();

const page = renderToString(React.createElement("h1", null, settings.name));
const asked = graphqlSync({ schema, source: "{ name born }", rootValue: { name: settings.name, born } });
if (lodash.get(asked, "data.name") !== settings.name) throw new Error("the schema answers wrongly");

const port = Number(process.env.PORT);
const app = express();
app.get("/", (_request, response) => {
  response.json({ pid: process.pid, port, born, page, clients: sockets.clients.size, pools: pool.totalCount,
                  timeout: client.defaults.timeout });
});
app.listen(port, "127.0.0.1", () => console.log("listening"));

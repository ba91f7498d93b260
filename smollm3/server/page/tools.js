// Tools as the reader describes them in the settings: JSON text in, OpenAI's tools or one plain sentence out.

/** @typedef {{type: "function", function: {name: string, description?: string, parameters?: object}}} Tool */

export const EXAMPLE_TOOLS = JSON.stringify(
  [
    {
      type: "function",
      function: {
        name: "get_weather",
        description: "Current weather in a city",
        parameters: {
          type: "object",
          properties: { city: { type: "string" }, unit: { type: "string", enum: ["celsius", "fahrenheit"] } },
          required: ["city"],
        },
      },
    },
  ],
  null,
  2,
);

/**
 * Read a list of tools; a bare function counts as a tool.
 * @param {string} text
 * @returns {{tools: Tool[], error: string}} `error` is "" when the text is empty or right
 */
export function readTools(text) {
  if (!text.trim()) return { tools: [], error: "" };
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    return { tools: [], error: `This is not JSON: ${error.message}` };
  }
  const tools = (Array.isArray(value) ? value : [value]).map((tool) =>
    typeof tool?.name === "string" && !tool.function ? { type: "function", function: tool } : tool,
  );
  const wrong = tools.findIndex((tool) => tool?.type !== "function" || !/^[\w.-]{1,64}$/.test(tool.function?.name ?? ""));
  if (wrong >= 0) return { tools: [], error: `Entry ${wrong + 1} is no function with a name of letters, digits, "_", "." and "-".` };
  return { tools, error: "" };
}

/** @param {string} text JSON, whole or not @returns {string} indented where it is whole */
export function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

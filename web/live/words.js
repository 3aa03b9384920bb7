// What the live node says, in the page's language: English here, other languages in locales/LANGUAGE/main.json.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const OURS = "instaflowLive"; // their place among the words of all packs

let translated = {};

/** Fetch the words of the page's language, before anything is said. */
export async function learn() {
  const language = app.extensionManager.setting.get("Comfy.Locale");
  if (language === "en") return;
  const languages = await (await api.fetchApi("/i18n")).json();
  translated = languages[language]?.[OURS] ?? {};
}

/** The English text in the page's language, with `value` at its {0}. */
export const t = (text, value) => (translated[text] ?? text).replace("{0}", () => value);

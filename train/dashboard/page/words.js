// The words of the page in English and Chinese.

const CHINESE = {
  "Axis": "横轴", "Steps": "步数", "Tokens": "词元", "Time": "时间", "Show": "范围", "All": "全部", "Last half": "后一半",
  "Last tenth": "后十分之一", "Zoom": "所选", "Smooth": "平滑", "Runs": "训练", "No runs here yet.": "这里还没有训练。",
  "Pause": "暂停", "Resume": "继续", "Save": "保存", "Save and keep": "保存并保留", "Evaluate": "评估", "Stop": "停止",
  "Stop it? Press again": "确定停止？再按一次", "Setting": "设置项", "Learning rate": "学习率", "Tokens of a step": "每步词元数",
  "Length of a row": "每行长度", "Evaluate every": "每几步评估", "Sample every": "每几步采样", "Log every": "每几步记录",
  "Save every": "每几步保存", "New value": "新的值", "Over steps": "过渡步数", "Set": "修改",
  "Text to continue": "要续写的文字", "Sample": "采样", "Samples": "样本", "Events": "事件", "None yet.": "还没有。",
  "Undo": "撤销", "Loss": "损失", "training": "训练", "validation": "验证", "Bits per byte, validation": "验证集每字节比特数",
  "Gradient norm": "梯度范数", "Gradient norm by layer": "各层梯度范数", "Tokens per second": "每秒词元数",
  "Bits per byte": "每字节比特数", "Step": "步", "Left": "剩余", "running": "训练中", "paused": "已暂停", "finished": "已完成",
  "stopped": "已停止", "starting": "启动中", "log": "对数", "Waiting for the first values.": "等待第一批数值。",
  "No connection to the dashboard. Trying again.": "与面板的连接断了，正在重试。", "Asking the run …": "正在询问……",
  "Open the address that the dashboard printed: it ends with the token.": "请打开面板打印的网址，它以令牌结尾。",
  "Accuracy": "准确率", "Confidence": "置信度", "Noise scale": "噪声尺度", "Update ratio": "更新与权重之比",
  "Attention entropy": "注意力熵", "Perplexity, validation": "验证集困惑度", "Loss by source": "各来源损失",
  "Bits per byte by source": "各来源每字节比特数", "MaxVio of experts by layer": "各层专家负载 MaxVio",
  "Entropy of expert load by layer, nats": "各层专家负载熵（nats）", "Experts without a token": "无词元的专家数",
  "Balance loss": "均衡损失", "Router z-loss": "路由 z 损失", "Load of each expert": "各专家负载",
  "layer": "层", "expert": "专家", "choices": "被选次数", "times the mean": "相对均值的倍数", "the mean": "均值", "twice": "2 倍",
  "¼ or less": "¼ 及以下", "4 or more": "4 倍及以上", "none at all": "无词元", "light": "浅色", "dark": "深色",
  "set": "修改", "undo": "撤销", "pause": "暂停", "resume": "继续", "save": "保存",
  "spike": "损失突增", "skipped": "跳过", "switch": "切换", "stop": "停止",
};

let language = localStorage.getItem("language") || (navigator.language.startsWith("zh") ? "zh" : "en");

/** A word in the page's language. */
export const word = (text) => (language === "zh" && CHINESE[text]) || text;

/** Put the words into everything that names one. */
export function fillWords() {
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-word]")) element.textContent = word(element.dataset.word);
  for (const element of document.querySelectorAll("[data-hint]")) {
    element.placeholder = word(element.dataset.hint);
    element.setAttribute("aria-label", word(element.dataset.hint));
  }
  for (const element of document.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", word(element.dataset.label));
  }
  document.getElementById("language").textContent = language === "zh" ? "English" : "中文";
}

/** The other language. */
export function changeLanguage() {
  language = language === "zh" ? "en" : "zh";
  localStorage.setItem("language", language);
  fillWords();
}
